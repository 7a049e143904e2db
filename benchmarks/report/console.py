"""A bench report for people on the screen, and for machines and papers in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.report.tables import HINT, TextTable, markdown_from_table, rich_table, wide_console
from benchmarks.timing.camera import CameraResult
from benchmarks.timing.stages import StageBreakdown
from benchmarks.timing.statistics import MIN_SAMPLES_FOR_P99, Summary
from benchmarks.timing.suite import TARGET_SOURCE, BenchReport, LatencyResult, Result
from benchmarks.timing.throughput import Rate, ThroughputResult
from runtime.files import atomic_path

_TITLES = {
    "latency": "latency, one frame in flight, milliseconds",
    "throughput": "throughput, frames in flight, frames a second",
    "camera": "camera, frames arrive at {camera_fps:g} FPS, the oldest is dropped, milliseconds",
}
_COLUMNS = {
    "latency": ("scope", "n", "p50", "95 % CI", "p90", "p95", "p99", "min", "max", "FPS", "speed"),
    "throughput": ("scope", "frames", "FPS", "95 % CI", "speed"),
    "camera": ("offered", "done", "dropped", "missed", "age p50", "p90", "p99", "max"),
}


def result_table(report: BenchReport) -> TextTable:
    """Lay out one row for each model and scope, ratios to the first model."""
    has_miou = any(result.miou is not None for result in report.results)
    extra = ("labels", *(("mIoU",) if has_miou else ()))
    rows = []
    for result in report.results:
        own = [labels_text(result), *([_miou_text(result)] if has_miou else [])]
        cells = _cells(result, report.results[0])
        for index, row in enumerate(cells):
            is_last = index == len(cells) - 1
            name = "" if index else result.name
            rows.append([name, *row, *(own if is_last else [""] * len(own))])
    first = report.results[0]
    title = _TITLES[report.mode].format(camera_fps=getattr(first, "camera_fps", 0))
    return TextTable(title, ("model", *_COLUMNS[report.mode], *extra), rows)


def stages_table(name: str, waterfall: StageBreakdown, target_ms: float) -> TextTable:
    """Lay out where the time of a frame goes."""
    rows = [
        [
            stage.name,
            f"{stage.ms:.2f}",
            f"{100 * stage.share:.0f} %",
            f"{100 * stage.ms / target_ms:.0f} %",
            stage.hint,
        ]
        for stage in waterfall.stages
    ]
    budget = f"{100 * waterfall.total_ms / target_ms:.0f} %"
    rows.append(["file to overlay", f"{waterfall.total_ms:.2f}", "100 %", budget, ""])
    columns = ("stage", "ms", "share", f"of {target_ms:.2f} ms", HINT)
    return TextTable(f"{name}: one frame after the other, from {waterfall.decoded}", columns, rows)


def print_report(report: BenchReport, console: Console | None = None) -> None:
    """Print environment, tables, notes and verdict."""
    console = wide_console(console)
    facts = {
        **report.environment,
        "frames": report.frames,
        "peak RSS": f"{report.peak_memory_bytes / 1e9:.2f} GB",
        "reference": f"{report.machine_reference.p50:.2f} ms for a 512x512 float32 matrix product",
        "harness": f"{report.overhead_us:.1f} us a call, with a backend that computes nothing",
    }
    for key, value in facts.items():
        console.print(f"{key:>10}  {value}", markup=False, soft_wrap=True)
    console.print()
    console.print(rich_table(result_table(report)))
    for result in report.results:
        if isinstance(result, LatencyResult):
            console.print(rich_table(stages_table(result.name, result.waterfall, report.target_ms)))
    for note in notes(report):
        console.print(note, markup=False, soft_wrap=True)
    for result in report.results:
        console.print(verdict(report, result), markup=False, soft_wrap=True)


def notes(report: BenchReport) -> list[str]:
    """Explain what the tables cannot: scopes, missing p99, unstable runs, unchecked labels."""
    lines = []
    if report.mode == "latency":
        lines.append(
            "engine: prepared input to outputs (on a GPU: kernels alone, by its own clock; transfer: "
            "with the copies). end to end: decoded frame to class map of its size. speed: against the "
            "first row."
        )
    summaries = [summary for _, summary in _summaries(report)]
    if any(summary.p99 is None for summary in summaries):
        cap = report.protocol.cap_seconds
        lines.append(
            f"p99 n/a: fewer than {MIN_SAMPLES_FOR_P99} samples within the {cap:g} s cap of a row."
        )
    lines.extend(
        f"unstable: {what}: its median moved by more than 5 % during the run, or is not sure within 3 %."
        for what, summary in _summaries(report)
        if not summary.is_stable
    )
    for result in report.results:
        if isinstance(result, ThroughputResult):
            tried = ", ".join(f"{layout}: {fps:.1f}" for layout, fps in result.trials.items())
            lines.append(f"{result.name}: {result.layout} was the fastest of {tried} FPS.")
            lines.extend(
                f"unstable: {result.name}, {scope}: its rate moved by more than 5 % during the run."
                for scope, rate in _rates(result)
                if not rate.is_stable
            )
        if isinstance(result, LatencyResult) and result.transfer is not None:
            lines.extend(_clock_note(result, result.transfer))
        if isinstance(result, LatencyResult) and result.trtexec:
            lines.append(f"{result.name}: {result.trtexec}.")
        if result.reference is None:
            lines.append(
                f"unchecked: {result.name}: no fp32 artefact of the same weights and size lies beside it; "
                "--reference names one."
            )
    if advice := int8_advice(report):
        lines.append(advice)
    return lines


def int8_advice(report: BenchReport) -> str:
    """Advise against INT8 where half precision is as fast; empty where nothing is to be said."""
    timed = [result for result in report.results if isinstance(result, LatencyResult)]
    int8 = [result for result in timed if result.precision == "int8"]
    half = [result for result in timed if result.precision in ("fp16", "bf16")]
    if not int8 or not half:
        return ""
    eight = min(int8, key=lambda result: result.engine.p50)
    sixteen = min(half, key=lambda result: result.engine.p50)
    gain = sixteen.engine.p50 / eight.engine.p50 - 1
    if gain >= 0.05:
        return ""
    return (
        f"advice: {eight.name} is {100 * gain:+.1f} % faster than {sixteen.name}, less than 5 %: take "
        f"{sixteen.precision}, it needs no calibration."
    )


def verdict(report: BenchReport, result: Result) -> str:
    """Hold a model against the target, naming this device and the target's own."""
    word = "PASS" if report.meets_target(result) else "MISS"
    if isinstance(result, CameraResult):
        return (
            f"{word}: {result.done} of {result.offered} frames of a {result.camera_fps:g} FPS camera "
            f"labelled, {result.missed} late, on {result.device} with {result.name}"
        )
    if isinstance(result, ThroughputResult):
        reached = f"{result.end_to_end.fps:.1f} FPS sustained"
    else:
        summary = result.end_to_end
        reached = f"{summary.fps:.1f} FPS ({summary.p50:.1f} ms)"
    return (
        f"{word}: {reached} end to end on {result.device} with {result.name}; target "
        f"{report.target_fps:g} FPS ({report.target_ms:.2f} ms), {TARGET_SOURCE}"
    )


def write_json(report: BenchReport, path: Path) -> None:
    """Write the whole report, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")


def write_markdown(report: BenchReport, path: Path) -> None:
    """Write tables, notes, verdicts and environment as Markdown."""
    grids = [result_table(report)]
    grids += [
        stages_table(result.name, result.waterfall, report.target_ms)
        for result in report.results
        if isinstance(result, LatencyResult)
    ]
    parts = [f"**{grid.title}**\n\n{markdown_from_table(grid)}" for grid in grids]
    parts.append("\n".join(f"- {verdict(report, result)}" for result in report.results))
    parts.append("\n".join(f"- {note}" for note in notes(report)))
    facts = {**report.environment, "frames": report.frames}
    parts.append("\n".join(f"- {key}: {value}" for key, value in facts.items()))
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")


def labels_text(result: Result) -> str:
    """Say how far a model labels as its reference does."""
    if result.agreement is None:
        return "unchecked"
    is_itself = result.reference == result.model and result.precision == "fp32"
    return "reference" if is_itself else f"{100 * result.agreement:.2f} %"


def _miou_text(result: Result) -> str:
    return "" if result.miou is None else f"{100 * result.miou:.2f} %"


def _cells(result: Result, first: Result) -> list[list[str]]:
    """Get the rows of one result, less name and accuracy."""
    if isinstance(result, LatencyResult):
        own = first.scopes if isinstance(first, LatencyResult) else {}
        return [
            [scope, *_summary_cells(summary, own.get(scope))]
            for scope, summary in result.scopes.items()
        ]
    if isinstance(result, ThroughputResult):
        rates = dict(_rates(first)) if isinstance(first, ThroughputResult) else {}
        return [
            [
                scope,
                str(rate.num_frames),
                f"{rate.fps:.1f}",
                f"{rate.fps_low:.1f}-{rate.fps_high:.1f}",
                f"{rate.fps / rates[scope].fps:.2f}x",
            ]
            for scope, rate in _rates(result)
        ]
    counts = (result.offered, result.done, result.dropped, result.missed)
    age = result.age
    return [
        [*map(str, counts), f"{age.p50:.1f}", f"{age.p90:.1f}", _p99(age), f"{age.max:.1f}"],
    ]


def _summary_cells(summary: Summary, first: Summary | None) -> list[str]:
    return [
        str(summary.n),
        f"{summary.p50:.1f}",
        f"{summary.p50_low:.1f}-{summary.p50_high:.1f}",
        f"{summary.p90:.1f}",
        f"{summary.p95:.1f}",
        _p99(summary),
        f"{summary.min:.1f}",
        f"{summary.max:.1f}",
        f"{summary.fps:.1f}",
        f"{first.p50 / summary.p50:.2f}x" if first else "",
    ]


def _p99(summary: Summary) -> str:
    return "n/a" if summary.p99 is None else f"{summary.p99:.1f}"


def _rates(result: ThroughputResult) -> Sequence[tuple[str, Rate]]:
    return ("engine", result.engine), ("end to end", result.end_to_end)


def _summaries(report: BenchReport) -> list[tuple[str, Summary]]:
    """List every summary of timings, and what it is of."""
    found = []
    for result in report.results:
        if isinstance(result, LatencyResult):
            found += [(f"{result.name}, {scope}", s) for scope, s in result.scopes.items()]
        elif isinstance(result, CameraResult):
            found.append((f"{result.name}, age", result.age))
    return found


def _clock_note(result: LatencyResult, transfer: Summary) -> Sequence[str]:
    """Hold the device's clock against the host's."""
    if result.engine.p50 <= transfer.p50:
        return ()
    return (
        f"clocks disagree: {result.name}: {result.engine.p50:.2f} ms on the device within "
        f"{transfer.p50:.2f} ms on the host; believe neither.",
    )
