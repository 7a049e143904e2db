"""Benchmark of models in one mode: latency, throughput or camera, with label check and mIoU."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment, describe_gpu_state
from benchmarks.frames import FrameSet
from benchmarks.models import BenchOptions, ModelIdentity, OpenModel, open_models
from benchmarks.timing.camera import CameraResult, measure_camera
from benchmarks.timing.latency import (
    END_TO_END,
    ENGINE,
    TRANSFER,
    TimingConfig,
    Workload,
    cycle,
    engine_workload,
    machine_reference,
    measure_latency,
)
from benchmarks.timing.stages import StageBreakdown, measure_stages
from benchmarks.timing.statistics import Summary, summarize
from benchmarks.timing.throughput import ThroughputResult, measure_throughput
from runtime.media.frames import batch_from_frames
from runtime.segmenter import Segmenter

SCHEMA = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyResult:
    """Latency of a model, one frame in flight."""

    model: ModelIdentity
    """The measured model."""
    scopes: dict[str, Summary]
    """Summaries by scope. ``engine``: prepared batch in, outputs out; on a GPU only kernels, in device time.
    ``transfer``: ``engine`` with copies, GPU only. ``end to end``: decoded frame in, class map out."""
    breakdown: StageBreakdown
    """Times of all stages from the encoded file to the overlay."""


Result = LatencyResult | ThroughputResult | CameraResult


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """Results of a benchmark and its conditions."""

    mode: str
    """``latency``, ``throughput`` or ``camera``."""
    results: tuple[Result, ...]
    """One result per model, backend and precision, all of the same type."""
    frames: str
    """Description of the frames."""
    config: TimingConfig
    """Length of warm-up and measurement."""
    environment: dict[str, str]
    """Machine, libraries and command."""
    target_fps: float
    """Target of the end-to-end rate, frames per second."""
    peak_memory_bytes: int
    """Peak resident memory of the process."""
    overhead_us: float
    """Median time of a call to the null backend, microseconds: the overhead of the measurement."""
    machine_reference: Summary
    """Timings of a fixed CPU computation: the speed of the machine during the run."""
    notes: tuple[str, ...] = ()
    """Messages of the backends, such as a missing CUDA graph."""

    @property
    def target_ms(self) -> float:
        """Time budget of a frame, milliseconds."""
        return 1e3 / self.target_fps

    def meets_target(self, result: Result) -> bool:
        """Check the slow end of the end-to-end interval, or that a camera loses no frame."""
        if isinstance(result, LatencyResult):
            return result.scopes[END_TO_END].p50_high <= self.target_ms
        if isinstance(result, ThroughputResult):
            return result.scopes[END_TO_END].fps_low >= self.target_fps
        return result.keeps_up

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        meets_target = [self.meets_target(result) for result in self.results]
        return {"schema": SCHEMA, **dataclasses.asdict(self), "meets_target": meets_target}


def bench_models(
    models: Sequence[Path],
    frames: FrameSet,
    options: BenchOptions,
    *,
    on_part: Callable[[str, float], None] = lambda text, progress: None,
) -> BenchReport:
    """Measure every model on every backend at every precision.

    ``on_part`` is called with the current part of the measurement and its progress, 0 to 1. Errors are those
    of ``open_models``.
    """
    environment = describe_environment()
    with ExitStack() as stack:
        on_part("opening models and checking labels", 0.0)
        opened = open_models(models, options, frames, stack)
        config, results = options.config, list[Result]()
        if options.mode == "latency":
            results, reference = _measure_latencies(opened, frames, config, on_part)
        else:
            reference = measure_latency([machine_reference()], config)[0]
        if options.mode == "throughput":
            results = [measure_throughput(m, frames, config, on_part) for m in opened]
        if options.mode == "camera":
            seconds = min(10.0, config.cap_seconds)
            for model in opened:
                on_part(f"{model.identity.name} behind a camera", 0.0)
                results.append(measure_camera(model, frames, options.camera_fps, seconds))
        notes = [f"{m.identity.name}: {note}" for m in opened for note in m.segmenter.backend.notes]
    return BenchReport(
        mode=options.mode,
        results=tuple(results),
        frames=frames.description,
        config=options.config,
        environment={**environment, "gpu after": describe_gpu_state()},
        target_fps=options.target_fps,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        overhead_us=measure_overhead_us(models[0], frames),
        machine_reference=reference,
        notes=tuple(notes),
    )


def measure_overhead_us(model: Path, frames: FrameSet) -> float:
    """Return the median time of a call to the null backend, microseconds."""
    with Segmenter.open(model, backend="null") as segmenter:
        batch = batch_from_frames(frames.frames[:1], segmenter.card)
        workload = engine_workload(segmenter.backend, batch)
        config = TimingConfig(warmup_seconds=0.02, min_seconds=0.1, cap_seconds=0.5)
        return 1e3 * measure_latency([workload], config)[0].p50


def _measure_latencies(
    opened: Sequence[OpenModel],
    frames: FrameSet,
    config: TimingConfig,
    on_part: Callable[[str, float], None],
) -> tuple[list[Result], Summary]:
    """Time all models and the machine reference in turns, then the stages of each model."""
    kernels_ms: list[list[float]] = [[] for _ in opened]
    workloads: list[Workload] = []
    for model, times in zip(opened, kernels_ms, strict=True):
        workloads += _workloads(model, frames, times)
    summaries = measure_latency(
        [*workloads, machine_reference()],
        config,
        on_turn=lambda workload, done: on_part(f"{workload.name}, {workload.scope}", done),
    )
    results: list[Result] = []
    for index, (_, segmenter, identity) in enumerate(opened):
        host, end_to_end = summaries[2 * index : 2 * index + 2]
        on_part(f"{identity.name}, stages", 0.0)
        scopes = {ENGINE: host, END_TO_END: end_to_end}
        if kernels := kernels_ms[index][-host.n :]:
            scopes = {ENGINE: summarize(kernels), TRANSFER: host, END_TO_END: end_to_end}
        breakdown = measure_stages(segmenter, frames)
        results.append(LatencyResult(model=identity, scopes=scopes, breakdown=breakdown))
    return results, summaries[-1]


def _workloads(model: OpenModel, frames: FrameSet, kernels_ms: list[float]) -> list[Workload]:
    """Make the workloads of both host scopes; on a GPU, each engine call appends its kernel time."""
    segmenter = model.segmenter
    ring = getattr(segmenter.backend, "ring", None)
    images = cycle(frames.frames)
    batches = cycle([batch_from_frames([frame], segmenter.card) for frame in frames.frames])

    def infer(index: int) -> None:
        segmenter.backend.infer(batches(index))
        if ring is not None:
            kernels_ms.append(ring.stage_times_ms()[1])

    def segment(index: int) -> None:
        segmenter.segment(images(index))

    calls = {ENGINE if ring is None else TRANSFER: infer, END_TO_END: segment}
    return [Workload(name=model.identity.name, scope=s, call=call) for s, call in calls.items()]
