"""Benchmark of models in one mode: latency, throughput or camera, with label check and mIoU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment, describe_gpu_state
from benchmarks.frames import FrameSet
from benchmarks.models import BenchOptions, ModelIdentity, OpenModel, open_models
from benchmarks.scopes import END_TO_END, ENGINE, HOST, PINNED
from benchmarks.timing.camera import CameraResult, measure_camera
from benchmarks.timing.latency import (
    TimingConfig,
    Workload,
    engine_workload,
    machine_reference,
    measure_latency,
)
from benchmarks.timing.stages import StageBreakdown, measure_stages
from benchmarks.timing.statistics import Summary, summarize
from benchmarks.timing.throughput import Rate, measure_throughput
from runtime.machine.machine import peak_memory_bytes
from runtime.media.frames import batch_from_frames
from runtime.segmenter import Segmenter

SCHEMA = 5


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """Latency or throughput of a model at one batch size."""

    model: ModelIdentity
    """The measured model."""
    batch: int
    """Frames of a batch."""
    scopes: Mapping[str, Summary | Rate]
    """Timings by scope, see ``benchmarks.scopes``: of one batch for latency, a rate for throughput."""
    in_flight: int = 1
    """Batches in flight."""

    @property
    def name(self) -> str:
        """Name for tables."""
        return f"{self.model.name}, batch {self.batch}"


Result = SpeedResult | CameraResult


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """Results of a benchmark and its conditions."""

    mode: str
    """``latency``, ``throughput`` or ``camera``."""
    results: tuple[Result, ...]
    """One result per model, backend, precision and batch size, all of the same type."""
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
    stages: Mapping[str, StageBreakdown] = field(default_factory=dict)
    """Latency only: stages of the smallest batch by name of the model."""
    notes: tuple[str, ...] = ()
    """Messages of the backends, such as a missing CUDA graph."""

    @property
    def target_ms(self) -> float:
        """Time budget of a frame, milliseconds."""
        return 1e3 / self.target_fps

    def meets_target(self, result: Result) -> bool:
        """Check the slow end of the end-to-end interval, or that a camera loses no frame."""
        if isinstance(result, CameraResult):
            return result.keeps_up
        return result.scopes[END_TO_END].fps_low >= self.target_fps

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
    """Measure every model on every backend at every precision and batch size.

    ``on_part`` is called with the current part of the measurement and its progress, 0 to 1. Errors are those
    of ``open_models``.
    """
    environment = describe_environment()
    with ExitStack() as stack:
        on_part("opening models and checking labels", 0.0)
        opened = open_models(models, options, frames, stack)
        config, results = options.config, list[Result]()
        stages: dict[str, StageBreakdown] = {}
        if options.mode == "latency":
            results, reference = _measure_latencies(opened, frames, config, on_part)
        else:
            reference = measure_latency([machine_reference()], config)[0]
        for model in opened:
            segmenter, name = model.segmenter, model.identity.name
            if options.mode == "latency":
                on_part(f"{name}, stages", 0.0)
                stages[name] = measure_stages(segmenter, frames, model.batches[0])
            elif options.mode == "camera":
                on_part(f"{name} behind a camera", 0.0)
                seconds = min(10.0, config.cap_seconds)
                results.append(measure_camera(model, frames, options.camera_fps, seconds))
            for size in model.batches if options.mode == "throughput" else ():
                on_part(f"{name}, batch {size}, throughput", 0.0)
                rates = measure_throughput(segmenter, frames, size, config)
                slots = segmenter.backend.num_slots
                results.append(SpeedResult(model.identity, size, rates, in_flight=slots))
        notes = [f"{m.identity.name}: {note}" for m in opened for note in m.segmenter.backend.notes]
    return BenchReport(
        mode=options.mode,
        results=tuple(results),
        frames=frames.description,
        config=options.config,
        environment={**environment, "gpu after": describe_gpu_state()},
        target_fps=options.target_fps,
        peak_memory_bytes=peak_memory_bytes(),
        overhead_us=measure_overhead_us(models[0], frames),
        machine_reference=reference,
        stages=stages,
        notes=tuple(notes),
    )


def measure_overhead_us(model: Path, frames: FrameSet) -> float:
    """Return the median time of a call to the null backend, microseconds."""
    with Segmenter.open(model, backend="null") as segmenter:
        batch = batch_from_frames(frames.frames[:1], segmenter.card)
        workload = engine_workload("null", segmenter.backend, [batch])
        config = TimingConfig(warmup_seconds=0.02, min_seconds=0.1, cap_seconds=0.5)
        return 1e3 * measure_latency([workload], config)[0].p50


def _measure_latencies(
    opened: Sequence[OpenModel],
    frames: FrameSet,
    config: TimingConfig,
    on_part: Callable[[str, float], None],
) -> tuple[list[Result], Summary]:
    """Time all models at all batch sizes, and the machine reference, in turns."""
    jobs = [(model, size, list[_StageTimes]()) for model in opened for size in model.batches]
    summaries = measure_latency(
        [workload for job in jobs for workload in _workloads(frames, *job)] + [machine_reference()],
        config,
        on_turn=lambda workload, done: on_part(f"{workload.name}, {workload.scope}", done),
    )
    results: list[Result] = []
    for index, (model, size, device_ms) in enumerate(jobs):
        host, end_to_end = summaries[2 * index : 2 * index + 2]
        scopes = {ENGINE: host}
        if device_ms:
            engine, pinned = [ms[1] for ms in device_ms], [sum(ms) for ms in device_ms]
            scopes = {ENGINE: summarize(engine, size), PINNED: summarize(pinned, size), HOST: host}
        results.append(SpeedResult(model.identity, size, scopes | {END_TO_END: end_to_end}))
    return results, summaries[-1]


_StageTimes = tuple[float, float, float]
"""Copy in, engine, copy out of a batch on a GPU, in ms."""


def _workloads(
    frames: FrameSet, model: OpenModel, size: int, device_ms: list[_StageTimes]
) -> list[Workload]:
    """Make the two calls that the host times; on a GPU the first appends its device times too."""
    segmenter, groups = model.segmenter, frames.groups(size)
    name = f"{model.identity.name}, batch {size}"
    batches = [batch_from_frames(group, segmenter.card) for group in groups]
    infer = engine_workload(name, segmenter.backend, batches)
    if (ring := getattr(segmenter.backend, "ring", None)) is not None:
        infer = dataclasses.replace(
            infer, scope=HOST, after=lambda: device_ms.append(ring.stage_times_ms())
        )
    segment = Workload(
        name=name,
        scope=END_TO_END,
        call=lambda index: segmenter.segment(groups[index % len(groups)]),
        frames=size,
    )
    return [infer, segment]
