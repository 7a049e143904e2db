"""Text of a benchmark report: tables, notes and verdicts, for the screen and for Markdown."""

from __future__ import annotations

from benchmarks.models import TARGET_SOURCE
from benchmarks.report.tables import HINT, Document, TextTable
from benchmarks.scopes import END_TO_END, ENGINE, HOST, PINNED, SCOPES
from benchmarks.timing.camera import CameraResult
from benchmarks.timing.statistics import MIN_SAMPLES_FOR_P99, Summary
from benchmarks.timing.suite import BenchReport, Result, SpeedResult
from benchmarks.timing.throughput import Rate

_TITLES = {
    "latency": "Latency, one batch in flight, milliseconds per batch",
    "throughput": "Throughput, several batches in flight, frames per second",
    "camera": "Camera at {camera_fps:g} FPS, a slow model drops frames, milliseconds",
}
_COLUMNS = {
    "latency": (
        *("batch", "scope", "n", "p50", "95 % CI", "p95", "p99", "min", "max"),
        *("ms/frame", "FPS", "speed"),
    ),
    "throughput": (
        *("batch", "in flight", "scope", "n", "ms/batch", "ms/frame", "FPS", "95 % CI", "speed"),
    ),
    "camera": ("offered", "done", "dropped", "missed", "age p50", "p90", "p99", "max"),
}


def result_table(report: BenchReport) -> TextTable:
    """Make the table of results, a row per scope; ``speed`` is relative to the first result."""
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
    """Make the table of the stage breakdown of each model, in latency mode."""
    columns = ("stage", "ms/frame", "share", f"of {report.target_ms:.2f} ms", HINT)
    is_generated = "generated street scenes" in report.frames
    decoded = ", decoded from JPEGs" if is_generated else ""
    grids = []
    for model, breakdown in report.stages.items():
        rows = []
        for name, ms in {**breakdown.stages_ms, "file to overlay": breakdown.total_ms}.items():
            shares = [
                f"{100 * ms / whole:.0f} %" for whole in (breakdown.total_ms, report.target_ms)
            ]
            rows.append([name, f"{ms:.2f}", *shares, breakdown.hints.get(name, "")])
        title = f"{model}: stages, one batch of {breakdown.batch} at a time{decoded}"
        grids.append(TextTable(title, columns, rows))
    return grids


def speed_results(report: BenchReport) -> list[SpeedResult]:
    """Select the results of latency and throughput mode."""
    return [result for result in report.results if isinstance(result, SpeedResult)]


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
        place = f"on {result.model.device} with {result.name}"
        if isinstance(result, CameraResult):
            counts = f"{result.done} of {result.offered} frames"
            camera = f"a {result.camera_fps:g} FPS camera"
            text = f"{counts} of {camera} labelled, {result.missed} late, {place}"
        else:
            timing = result.scopes[END_TO_END]
            sustained = "" if isinstance(timing, Summary) else " sustained"
            text = f"{timing.fps:.1f} FPS{sustained} end to end {place}; target {target}"
        lines.append(f"{'PASS' if report.meets_target(result) else 'MISS'}: {text}")
    return lines


def notes(report: BenchReport) -> list[str]:
    """List explanations and warnings: scopes, missing p99, unstable runs, unchecked labels, advice."""
    speeds = speed_results(report)
    timings = [timing for result in speeds for timing in result.scopes.values()]
    scopes = {scope for result in speeds for scope in result.scopes}
    lines = [f"{scope}: {text}." for scope, text in SCOPES.items() if scope in scopes]
    if END_TO_END in scopes and PINNED not in scopes:
        lines.append("pinned: does not exist on a CPU.")
    if any(isinstance(timing, Summary) and timing.p99 is None for timing in timings):
        lines.append(
            f"p99 n/a: fewer than {MIN_SAMPLES_FOR_P99} samples within {report.config.cap_seconds:g} s "
            "per row."
        )
    if not all(timing.is_stable for timing in timings):
        lines.append(
            "~ unstable: the speed changed by more than 5 % during the run, or the interval of the median is "
            "wider than 3 %."
        )
    lines.extend(report.notes)
    for result in speeds:
        pinned, host = result.scopes.get(PINNED), result.scopes.get(HOST)
        if report.mode == "latency" and pinned and host and pinned.fps < host.fps:
            lines.append(
                f"clocks disagree: {result.name}: {1e3 / pinned.fps:.2f} ms on the device, but "
                f"{1e3 / host.fps:.2f} ms on the host including copies; neither value is reliable."
            )
    for model in dict.fromkeys(result.model for result in report.results):
        if model.reference is None:
            lines.append(
                f"unchecked: {model.name}: no fp32 artefact of the same weights and size in its folder; "
                "select one with --reference."
            )
        lines += [f"advice: {model.name}: {advice}" for advice in model.advice]
    return lines + int8_advice(report)


def int8_advice(report: BenchReport) -> list[str]:
    """Advise against INT8 if half precision is as fast: one line, or none."""
    results = speed_results(report) if report.mode == "latency" else []
    timed = [result for result in results if result.batch == results[0].batch]
    timed.sort(key=lambda result: -result.scopes[ENGINE].fps)
    int8 = next((result for result in timed if result.model.precision == "int8"), None)
    half = next((result for result in timed if result.model.precision in ("fp16", "bf16")), None)
    if int8 is None or half is None:
        return []
    gain = int8.scopes[ENGINE].fps / half.scopes[ENGINE].fps - 1
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
    is_reference = model.reference == model.file and model.agreement == 1
    return "reference" if is_reference else f"{100 * model.agreement:.2f} %"


def _cells(result: Result, first: Result) -> list[list[str]]:
    """Format the rows of one result, without name and accuracy."""
    if isinstance(result, CameraResult):
        counts = (result.offered, result.done, result.dropped, result.missed)
        age = result.scopes["age"]
        return [[*map(str, counts), *map(_number, (age.p50, age.p90, age.p99, age.max))]]
    rows = []
    for scope, timing in result.scopes.items():
        base = first.scopes.get(scope)
        per_frame, fps = _number(1e3 / timing.fps), _number(timing.fps)
        if isinstance(timing, Summary):
            interval = _interval(timing, timing.p50_low, timing.p50_high)
            marks = map(_number, (timing.p95, timing.p99, timing.min, timing.max))
            median = _number(timing.p50)
            row = [scope, str(timing.n), median, interval, *marks, per_frame, fps]
        else:
            interval = _interval(timing, timing.fps_low, timing.fps_high)
            batch_ms = _number(1e3 * result.batch / timing.fps)
            in_flight = str(result.in_flight)
            row = [in_flight, scope, str(timing.n), batch_ms, per_frame, fps, interval]
        speed = f"{timing.fps / base.fps:.2f}x" if base else ""
        rows.append([str(result.batch), *row, speed])
    return rows


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.{1 if value >= 10 else 2}f}"


def _interval(timing: Summary | Rate, low: float, high: float) -> str:
    return f"{'' if timing.is_stable else '~'}{_number(low)}-{_number(high)}"
