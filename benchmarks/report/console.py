"""Text of a benchmark report: tables, notes and verdicts, for the screen and for Markdown."""

from __future__ import annotations

from benchmarks.models import TARGET_SOURCE
from benchmarks.report.tables import HINT, Document, TextTable
from benchmarks.timing.camera import CameraResult
from benchmarks.timing.latency import END_TO_END, ENGINE, TRANSFER
from benchmarks.timing.statistics import MIN_SAMPLES_FOR_P99, Summary
from benchmarks.timing.suite import BenchReport, LatencyResult, Result
from benchmarks.timing.throughput import ThroughputResult

_TITLES = {
    "latency": "Latency, one frame in flight, milliseconds",
    "throughput": "Throughput, several frames in flight, frames per second",
    "camera": "Camera at {camera_fps:g} FPS, a slow model drops frames, milliseconds",
}
_COLUMNS = {
    "latency": ("scope", "n", "p50", "95 % CI", "p90", "p95", "p99", "min", "max", "FPS", "speed"),
    "throughput": ("scope", "frames", "FPS", "95 % CI", "speed"),
    "camera": ("offered", "done", "dropped", "missed", "age p50", "p90", "p99", "max"),
}


def result_table(report: BenchReport) -> TextTable:
    """Make the table of results, one row per model and scope; ``speed`` is relative to the first model."""
    has_miou = any(result.model.miou is not None for result in report.results)
    rows = []
    for result in report.results:
        accuracy = [_agreement_text(result)]
        if has_miou:
            accuracy.append("" if result.model.miou is None else f"{100 * result.model.miou:.2f} %")
        cells = _cells(result, report.results[0])
        for index, row in enumerate(cells):
            is_last = index == len(cells) - 1
            name = "" if index else result.model.name
            rows.append([name, *row, *(accuracy if is_last else [""] * len(accuracy))])
    columns = ("model", *_COLUMNS[report.mode], "labels", *(("mIoU",) if has_miou else ()))
    camera_fps = getattr(report.results[0], "camera_fps", 0)
    return TextTable(_TITLES[report.mode].format(camera_fps=camera_fps), columns, rows)


def stage_tables(report: BenchReport) -> list[TextTable]:
    """Make the table of the stage breakdown of each result of latency mode."""
    columns = ("stage", "ms", "share", f"of {report.target_ms:.2f} ms", HINT)
    is_generated = "generated street scenes" in report.frames
    decoded = ", decoded from JPEGs" if is_generated else ""
    grids = []
    for result in latency_results(report):
        total_ms, hints = result.breakdown.total_ms, result.breakdown.hints
        rows = []
        for name, ms in {**result.breakdown.stages_ms, "file to overlay": total_ms}.items():
            shares = [f"{100 * ms / whole:.0f} %" for whole in (total_ms, report.target_ms)]
            rows.append([name, f"{ms:.2f}", *shares, hints.get(name, "")])
        title = f"{result.model.name}: stages, one frame at a time{decoded}"
        grids.append(TextTable(title, columns, rows))
    return grids


def latency_results(report: BenchReport) -> list[LatencyResult]:
    """Select the results of latency mode."""
    return [result for result in report.results if isinstance(result, LatencyResult)]


def document_from_report(report: BenchReport) -> Document:
    """Format a report: conditions, results and stages, notes and verdicts."""
    facts = {
        **report.environment,
        "frames": report.frames,
        "peak RSS": f"{report.peak_memory_bytes / 1e9:.2f} GB",
        "reference": f"{report.machine_reference.p50:.2f} ms for a 512x512 float32 matrix product",
        "overhead": f"{report.overhead_us:.1f} us per call, measured with the null backend",
    }
    tables = [result_table(report), *stage_tables(report)]
    return Document(facts, tables, [*notes(report), *verdicts(report)])


def verdicts(report: BenchReport) -> list[str]:
    """Compare each result with the target: ``PASS`` or ``MISS``, speed, device, model and target."""
    target = f"{report.target_fps:g} FPS ({report.target_ms:.2f} ms), {TARGET_SOURCE}"
    lines = []
    for result in report.results:
        place = f"on {result.model.device} with {result.model.name}"
        if isinstance(result, CameraResult):
            counts = f"{result.done} of {result.offered} frames"
            camera = f"a {result.camera_fps:g} FPS camera"
            text = f"{counts} of {camera} labelled, {result.missed} late, {place}"
        else:
            timing = result.scopes[END_TO_END]
            detail = f"({timing.p50:.1f} ms)" if isinstance(timing, Summary) else "sustained"
            text = f"{timing.fps:.1f} FPS {detail} end to end {place}; target {target}"
        lines.append(f"{'PASS' if report.meets_target(result) else 'MISS'}: {text}")
    return lines


def notes(report: BenchReport) -> list[str]:
    """List explanations and warnings: scopes, missing p99, unstable runs, unchecked labels, advice."""
    lines = []
    if report.mode == "latency":
        lines.append(
            "engine: prepared input to outputs (GPU: kernels only, timed by the device; transfer: with "
            "copies). end to end: decoded frame to class map of its size. speed: relative to the first row."
        )
    timings = [(r.model.name, *item) for r in report.results for item in r.scopes.items()]
    if any(isinstance(timing, Summary) and timing.p99 is None for *_, timing in timings):
        lines.append(
            f"p99 n/a: fewer than {MIN_SAMPLES_FOR_P99} samples within {report.config.cap_seconds:g} s "
            "per row."
        )
    lines.extend(
        f"unstable: {name}, {scope}: the speed changed by more than 5 % during the run, or the interval "
        "of the median is wider than 3 %."
        for name, scope, timing in timings
        if not timing.is_stable
    )
    lines.extend(report.notes)
    for result in report.results:
        name = result.model.name
        if isinstance(result, ThroughputResult):
            tried = ", ".join(f"{trial}: {fps:.1f}" for trial, fps in result.trials.items())
            lines.append(f"{name}: {result.concurrency} is the fastest setting; FPS: {tried}.")
        if isinstance(result, LatencyResult) and TRANSFER in result.scopes:
            kernels, host = result.scopes[ENGINE].p50, result.scopes[TRANSFER].p50
            if kernels > host:
                lines.append(
                    f"clocks disagree: {name}: {kernels:.2f} ms on the device, but {host:.2f} ms on the "
                    "host including copies; neither value is reliable."
                )
        if result.model.reference is None:
            lines.append(
                f"unchecked: {name}: no fp32 artefact of the same weights and size in its folder; "
                "select one with --reference."
            )
        lines += [f"advice: {name}: {advice}" for advice in result.model.advice]
    return lines + int8_advice(report)


def int8_advice(report: BenchReport) -> list[str]:
    """Advise against INT8 if half precision is as fast: one line, or none."""
    timed = sorted(latency_results(report), key=lambda result: result.scopes[ENGINE].p50)
    int8 = next((result for result in timed if result.model.precision == "int8"), None)
    half = next((result for result in timed if result.model.precision in ("fp16", "bf16")), None)
    if int8 is None or half is None:
        return []
    gain = half.scopes[ENGINE].p50 / int8.scopes[ENGINE].p50 - 1
    if gain >= 0.05:
        return []
    return [
        f"advice: {int8.model.name} is {100 * gain:+.1f} % faster than {half.model.name}, less "
        f"than 5 %: use {half.model.precision}, which needs no calibration."
    ]


def _agreement_text(result: Result) -> str:
    model = result.model
    if model.agreement is None:
        return "unchecked"
    is_reference = model.reference == model.file and model.precision == "fp32"
    return "reference" if is_reference else f"{100 * model.agreement:.2f} %"


def _cells(result: Result, first: Result) -> list[list[str]]:
    """Format the rows of one result, without name and accuracy."""
    if isinstance(result, CameraResult):
        counts = (result.offered, result.done, result.dropped, result.missed)
        age = result.scopes["age"]
        return [[*map(str, counts), *map(_number, (age.p50, age.p90, age.p99, age.max))]]
    rows = []
    for scope, timing in result.scopes.items():
        if isinstance(timing, Summary):
            marks = (timing.p90, timing.p95, timing.p99, timing.min, timing.max, timing.fps)
            interval = f"{timing.p50_low:.1f}-{timing.p50_high:.1f}"
            row = [str(timing.n), _number(timing.p50), interval, *map(_number, marks)]
        else:
            interval = f"{timing.fps_low:.1f}-{timing.fps_high:.1f}"
            row = [str(timing.num_frames), _number(timing.fps), interval]
        base = first.scopes.get(scope)
        rows.append([scope, *row, f"{timing.fps / base.fps:.2f}x" if base else ""])
    return rows


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"
