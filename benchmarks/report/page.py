"""A bench report as one page: verdict, tables, pictures, and the command that makes it again; no network."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import BenchmarkError
from benchmarks.report.console import notes, result_table, stages_table, verdict
from benchmarks.report.tables import HINT, TEXT_COLUMNS, TextTable
from benchmarks.timing.stages import StageBreakdown
from benchmarks.timing.suite import BenchReport, LatencyResult
from benchmarks.timing.throughput import ThroughputResult
from runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = Path(__file__).parent / "templates"
_COLOURS = ("#1f77b4", "#d1690e", "#2a8a3e", "#8b5fbf", "#b02a37", "#3b8f8f")
_LEAST_SPAN = 2.0
_STAGE_COLOURS = {
    "decode": "#8c9bab",
    "resize": "#b9a36b",
    "prepare": "#c9b8d8",
    "copy in": "#7fb3d5",
    "engine": "#1f77b4",
    "copy out": "#5dade2",
    "upscale": "#82b366",
    "overlay": "#d79b5a",
    "other": "#d0d4d9",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One part of the page."""

    title: str
    grid: TextTable | None = None
    picture: str = ""
    text: str = ""


def require_page_libraries() -> None:
    """Refuse early where what draws and writes the page is missing.

    Raises:
        BenchmarkError: With what to install.
    """
    missing = [name for name in ("jinja2", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise BenchmarkError(
            f"--html needs {' and '.join(missing)}, not installed",
            hint="pip install 'esnet-deploy[report]'",
        )


def write_page(report: BenchReport, path: Path) -> None:
    """Write the page, whole or not at all."""
    page = page_from_report(report)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def page_from_report(report: BenchReport) -> str:
    """Make the page: one HTML text with styles and pictures inside."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True
    )
    lines = [verdict(report, result) for result in report.results]
    models = ", ".join(dict.fromkeys(result.model for result in report.results))
    return templates.get_template("report.html").render(
        title=f"{models}: {report.mode}",
        subtitle=f"{report.environment['date']} on {report.results[0].device}; {report.frames}",
        verdicts=[(line.partition(": ")[0], line.partition(": ")[2]) for line in lines],
        sections=_sections(report),
        notes=notes(report),
        command=report.environment["command"],
        facts={
            **report.environment,
            "sha256": "; ".join(f"{r.model} {r.sha256}" for r in report.results),
            "peak RSS": f"{report.peak_memory_bytes / 1e9:.2f} GB",
            "harness": f"{report.overhead_us:.1f} us a call",
        },
        text_columns=TEXT_COLUMNS,
        hint_column=HINT,
    )


def _sections(report: BenchReport) -> list[Section]:
    grid = result_table(report)
    sections = [Section(title=f"{grid.title[0].upper()}{grid.title[1:]}", grid=grid)]
    timed = [result for result in report.results if isinstance(result, LatencyResult)]
    if timed:
        sections.append(
            Section(
                title="How latency is distributed",
                picture=_svg(_distribution(timed, report.target_ms), "distribution"),
                text="Share of frames done within a time, end to end; nothing is thrown away.",
            )
        )
        sections.append(
            Section(
                title="Where the time of a frame goes",
                picture=_svg(_waterfalls(timed, report.target_ms), "waterfall"),
            )
        )
        for result in timed:
            grid = stages_table(result.name, result.waterfall, report.target_ms)
            sections.append(Section(title=grid.title, grid=grid))
    speeds = [(result, _fps(result)) for result in report.results]
    if len(speeds) > 1 and any(result.agreement is not None for result in report.results):
        sections.append(
            Section(
                title="Precision, speed and accuracy",
                picture=_svg(_scatter(report), "scatter"),
                text="Up and to the right is better. Same file, same hash, for both axes.",
            )
        )
    return sections


def _fps(result: object) -> float:
    if isinstance(result, LatencyResult):
        return result.end_to_end.fps
    if isinstance(result, ThroughputResult):
        return result.end_to_end.fps
    return float("nan")


def _distribution(results: Sequence[LatencyResult], target_ms: float) -> Figure:
    figure, axis = _figure(8, 3.2)
    shares = range(101)
    for result, colour in zip(results, _cycled(len(results)), strict=True):
        axis.plot(result.end_to_end.quantiles, shares, label=result.name, color=colour)
    axis.axvline(target_ms, color="#555", linestyle="--", linewidth=1)
    axis.annotate(f"{target_ms:.2f} ms", (target_ms, 4), xytext=(4, 0), textcoords="offset points")
    axis.set(xlabel="milliseconds", ylabel="% of frames", ylim=(0, 100))
    axis.set_xlim(left=0)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure


def _waterfalls(results: Sequence[LatencyResult], target_ms: float) -> Figure:
    figure, axis = _figure(8, 1.3 + 0.5 * len(results))
    names = [result.name for result in results]
    used: set[str] = set()
    for row, result in enumerate(results):
        start = 0.0
        for stage in result.waterfall.stages:
            label = stage.name if stage.name not in used else None
            used.add(stage.name)
            colour = _STAGE_COLOURS[stage.name]
            axis.barh(row, stage.ms, left=start, color=colour, label=label, height=0.6)
            start += stage.ms
        axis.annotate(
            f"{start:.1f} ms", (start, row), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axis.axvline(target_ms, color="#555", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(f"milliseconds; dashed: the budget of {target_ms:.2f} ms")
    axis.margins(x=0.12)
    figure.legend(frameon=False, ncols=9, loc="outside upper center", columnspacing=1)
    return figure


def waterfall_picture(name: str, waterfall: StageBreakdown, target_ms: float, path: Path) -> None:
    """Draw one waterfall into a file of its own (.svg, .png)."""
    figure, axis = _figure(8, 0.9 + 0.34 * len(waterfall.stages))
    start = 0.0
    for row, stage in enumerate(waterfall.stages):
        axis.barh(row, stage.ms, left=start, color=_STAGE_COLOURS[stage.name], height=0.7)
        start += stage.ms
        text = f"{stage.ms:.2f} ms, {100 * stage.share:.0f} %"
        axis.annotate(text, (start, row), xytext=(4, 0), textcoords="offset points", va="center")
    axis.axvline(target_ms, color="#555", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(waterfall.stages)), [stage.name for stage in waterfall.stages])
    axis.invert_yaxis()
    axis.set(
        xlabel=f"milliseconds; dashed: the budget of {target_ms:.2f} ms",
        title=f"{name}: {start:.1f} ms from file to overlay",
    )
    axis.margins(x=0.2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip("."), dpi=120)


def _scatter(report: BenchReport) -> Figure:
    figure, axis = _figure(8, 3.2)
    has_miou = all(result.miou is not None for result in report.results)
    for result, colour in zip(report.results, _cycled(len(report.results)), strict=True):
        share = result.miou if has_miou else result.agreement
        if share is None:
            continue
        axis.scatter(_fps(result), 100 * share, color=colour, s=48, zorder=3)
        axis.annotate(
            result.name,
            (_fps(result), 100 * share),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
        )
    axis.set(
        xlabel="FPS end to end",
        ylabel="mIoU, %" if has_miou else "labels equal to the reference, %",
    )
    axis.margins(x=0.25, y=0.25)
    low, high = axis.get_ylim()
    middle, half = (low + high) / 2, max(_LEAST_SPAN, high - low) / 2
    axis.set_ylim(middle - half, middle + half)  # a tenth of a point must not look like a cliff
    axis.grid(color="#eee")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _svg(figure: Figure, salt: str) -> str:
    """Draw a figure as SVG for the inside of a page: text stays text, names do not clash with others'."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _cycled(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]
