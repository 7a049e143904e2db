"""Print a bench report for people, and write it for machines."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.bench import TARGET_SOURCE, BenchReport, ModelResult
from benchmarks.latency import END_TO_END, ENGINE
from benchmarks.statistics import MIN_SAMPLES_FOR_P99, Summary
from runtime.files import atomic_path

_COLUMNS = ("n", "p50", "95 % CI", "p90", "p95", "p99", "min", "max", "FPS", "speed", "agree")
_MIN_WIDTH = 120


def print_report(report: BenchReport, console: Console | None = None) -> None:
    """Print environment, table, notes and verdict."""
    console = console or Console(highlight=False)
    if console.width < _MIN_WIDTH:
        console = Console(highlight=False, width=_MIN_WIDTH, file=console.file)
    for key, value in report.environment.items():
        console.print(f"{key:>10}  {value}", markup=False, soft_wrap=True)
    console.print(f"{'frames':>10}  {report.frames}", markup=False, soft_wrap=True)
    console.print(f"{'peak RSS':>10}  {report.peak_memory_bytes / 1e9:.2f} GB", markup=False)
    console.print()
    console.print(latency_table(report))
    for note in notes(report):
        console.print(note, markup=False, soft_wrap=True)
    for result in report.results:
        console.print(verdict(report, result), markup=False, soft_wrap=True)


def latency_table(report: BenchReport) -> Table:
    """Lay out one row for each model and scope, times in milliseconds, ratios to the first model."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="latency, one frame in flight, milliseconds",
        title_justify="left",
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("model", overflow="fold")
    table.add_column("scope", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    first = report.results[0]
    for result in report.results:
        agreement = f"{100 * result.agreement:.2f} %"
        name = escape(result.name)
        table.add_row(name, ENGINE, *_cells(result.engine, first.engine), "")
        table.add_row("", END_TO_END, *_cells(result.end_to_end, first.end_to_end), agreement)
    return table


def notes(report: BenchReport) -> list[str]:
    """Explain what the table cannot: missing p99, unstable runs, what the scopes are."""
    lines = [
        "engine: prepared input to outputs on the host. end to end: decoded frame to class map of its size. "
        "speed and agree: against the first row."
    ]
    summaries = [summary for r in report.results for summary in (r.engine, r.end_to_end)]
    if any(summary.p99 is None for summary in summaries):
        cap = report.protocol.cap_seconds
        lines.append(
            f"p99 n/a: fewer than {MIN_SAMPLES_FOR_P99} samples within the {cap:g} s cap of a row."
        )
    lines.extend(
        f"unstable: {result.name}, {scope}: its median moved by more than 5 % during the run."
        for result in report.results
        for scope, summary in ((ENGINE, result.engine), (END_TO_END, result.end_to_end))
        if not summary.is_stable
    )
    return lines


def verdict(report: BenchReport, result: ModelResult) -> str:
    """Hold a model against the target, naming this device and the target's own."""
    word = "PASS" if report.meets_target(result) else "MISS"
    summary = result.end_to_end
    return (
        f"{word}: {summary.fps:.1f} FPS ({summary.p50:.1f} ms) end to end on {result.device} with "
        f"{result.name}; target {report.target_fps:g} FPS ({report.target_ms:.2f} ms), {TARGET_SOURCE}"
    )


def write_json(report: BenchReport, path: Path) -> None:
    """Write the whole report, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")


def _cells(summary: Summary, first: Summary) -> list[str]:
    p99 = "n/a" if summary.p99 is None else f"{summary.p99:.1f}"
    return [
        str(summary.n),
        f"{summary.p50:.1f}",
        f"{summary.p50_low:.1f}-{summary.p50_high:.1f}",
        f"{summary.p90:.1f}",
        f"{summary.p95:.1f}",
        p99,
        f"{summary.min:.1f}",
        f"{summary.max:.1f}",
        f"{summary.fps:.1f}",
        f"{first.p50 / summary.p50:.2f}x",
    ]
