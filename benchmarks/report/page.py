"""Benchmark report as one HTML page with tables and plots inside; it loads nothing from the network."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.report import console
from benchmarks.report.tables import HINT, TEXT_COLUMNS, TextTable
from benchmarks.scopes import END_TO_END
from benchmarks.timing.stages import STAGES, StageBreakdown
from benchmarks.timing.statistics import Summary
from benchmarks.timing.suite import BenchReport, SpeedResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = Path(__file__).parent / "templates"
_MIN_ACCURACY_SPAN = 2.0
_OFFSET = {"textcoords": "offset points", "xytext": (4, 0)}


def require_page_libraries() -> None:
    """Raise ``BenchmarkError`` if a library for the page is missing."""
    missing = [name for name in ("jinja2", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise BenchmarkError(
            f"--html needs {' and '.join(missing)}, not installed",
            hint="pip install 'esnet-deploy[report]'",
        )


def page_from_report(report: BenchReport) -> str:
    """Render the page: HTML with styles and SVG plots inside."""
    import jinja2
    import matplotlib as mpl

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True
    )
    document = console.document_from_report(report)
    with mpl.rc_context({"text.parse_math": False}):  # a dollar sign in a name is no formula
        sections = _sections(report, document.tables)
    models = [result.model for result in report.results]
    hashes = "; ".join(f"{model.file} {model.sha256}" for model in models)
    return templates.get_template("report.html").render(
        title=f"{', '.join(dict.fromkeys(model.file for model in models))}: {report.mode}",
        subtitle=f"{report.environment['date']} on {models[0].device}; {report.frames}",
        verdicts=[line.split(": ", 1) for line in console.verdicts(report)],
        sections=sections,
        notes=console.notes(report),
        command=report.environment["command"],
        facts={**document.facts, "sha256": hashes},
        text_columns=TEXT_COLUMNS,
        hint_column=HINT,
    )


def _sections(report: BenchReport, tables: Sequence[TextTable]) -> list[dict[str, Any]]:
    """Make the sections of the page: title, and a table, or a plot with or without text."""
    sections: list[dict[str, Any]] = [{"title": table.title, "table": table} for table in tables]
    speeds = console.speed_results(report)
    if report.stages:
        text = "Share of batches completed within a time, end to end; outliers are included."
        distribution = _plot_distribution(speeds, report.target_ms)
        sections[1:1] = [
            _plot_section("Latency distribution", distribution, text),
            _plot_section("Stage breakdown", _plot_stages(report.stages, report.target_ms)),
        ]
    if len(speeds) > 1 and any(result.model.agreement is not None for result in speeds):
        text = "Up and to the right is better. Both axes are measured on the same file."
        title = "Precision, speed and accuracy"
        sections.append(_plot_section(title, _plot_accuracy(speeds), text))
    return sections


def _plot_distribution(results: Sequence[SpeedResult], target_ms: float) -> Figure:
    figure, axis = _figure(3.2)
    for index, result in enumerate(results):
        timing = result.scopes[END_TO_END]
        assert isinstance(timing, Summary)
        times = np.divide(timing.quantiles, result.batch)
        axis.plot(times, range(101), label=result.name, color=f"C{index}")
    axis.axvline(target_ms, color="#555", linestyle="--", linewidth=1)
    axis.annotate(f"{target_ms:.2f} ms", (target_ms, 4), **_OFFSET)
    axis.set(xlabel="milliseconds per frame", ylabel="% of batches", ylim=(0, 100))
    axis.set_xlim(left=0)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure


def _plot_stages(breakdowns: Mapping[str, StageBreakdown], target_ms: float) -> Figure:
    figure, axis = _figure(1.3 + 0.5 * len(breakdowns))
    rows, ends = range(len(breakdowns)), np.zeros(len(breakdowns))
    for index, stage in enumerate(STAGES):
        widths = [breakdown.stages_ms.get(stage, 0.0) for breakdown in breakdowns.values()]
        if any(widths):
            axis.barh(rows, widths, left=ends, color=f"C{index}", label=stage, height=0.6)
        ends += widths
    for row, end in enumerate(ends):
        axis.annotate(f"{end:.1f} ms", (end, row), va="center", **_OFFSET)
    axis.axvline(target_ms, color="#555", linestyle="--", linewidth=1)
    axis.set_yticks(rows, list(breakdowns))
    axis.invert_yaxis()
    axis.set_xlabel(f"milliseconds per frame; dashed: the budget of {target_ms:.2f} ms")
    axis.margins(x=0.12)
    figure.legend(frameon=False, ncols=5, loc="outside upper center", columnspacing=1)
    return figure


def _plot_accuracy(results: Sequence[SpeedResult]) -> Figure:
    figure, axis = _figure(3.2)
    has_miou = all(result.model.miou is not None for result in results)
    for index, result in enumerate(results):
        share = result.model.miou if has_miou else result.model.agreement
        if share is None:
            continue
        point = (result.scopes[END_TO_END].fps, 100 * share)
        axis.scatter(*point, color=f"C{index}", s=48, zorder=3)
        axis.annotate(result.name, point, ha="center", **{**_OFFSET, "xytext": (0, 8)})
    axis.set(
        xlabel="FPS end to end",
        ylabel="mIoU, %" if has_miou else "label agreement with reference, %",
    )
    axis.margins(x=0.25, y=0.25)
    low, high = axis.get_ylim()
    middle, half = (low + high) / 2, max(_MIN_ACCURACY_SPAN, high - low) / 2
    axis.set_ylim(middle - half, middle + half)  # differences of 0.1 % stay small in the plot
    axis.grid(color="#eee")
    return figure


def _figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _plot_section(title: str, figure: Figure, text: str = "") -> dict[str, Any]:
    """Render a figure as inline SVG; the salt keeps element ids of several figures apart."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return {"title": title, "plot": svg[svg.index("<svg") :], "text": text}
