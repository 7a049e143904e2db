"""``esnet-bench``: models with one frame in flight, pipelined, or behind a camera, against the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe_environment, describe_gpu_state, peak_memory_bytes
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet
from benchmarks.models import Identity, OpenModel, check_labels, identify, open_models
from benchmarks.timing.camera import CameraResult, measure_camera
from benchmarks.timing.latency import (
    END_TO_END,
    ENGINE,
    TRANSFER,
    TimingConfig,
    Workload,
    cycle,
    machine_reference,
    measure_latency,
)
from benchmarks.timing.stages import StageBreakdown, measure_stages
from benchmarks.timing.statistics import Summary, summarize
from benchmarks.timing.throughput import ThroughputResult, measure_throughput
from benchmarks.timing.trtexec import cross_check, explain, preset_ms, require_preset
from runtime.media.frames import batch_from_frames
from runtime.segmenter import Segmenter

TARGET_FPS = 63.0
TARGET_SOURCE = "published for a GTX 1080 Ti with PyTorch, arXiv 1906.09826"
SCHEMA = 2
LATENCY, THROUGHPUT, CAMERA = "latency", "throughput", "camera"


@dataclass(frozen=True, kw_only=True)
class LatencyResult(Identity):
    """One model on one backend at one precision, one frame in flight."""

    engine: Summary
    """On a CPU: a prepared batch in, outputs out. On a GPU: kernels alone, by the device's clock."""
    transfer: Summary | None
    """On a GPU: a prepared batch on the host in, outputs on the host out. ``None`` on a CPU, where
    nothing is transferred."""
    end_to_end: Summary
    """Decoded frame in, class map of the frame's size out."""
    waterfall: StageBreakdown
    """Where the time of a frame goes, from its file to its overlay."""
    trtexec: str = ""
    """Latency by trtexec's definition, beside its own where it is installed; empty unless asked for."""

    @property
    def scopes(self) -> dict[str, Summary]:
        """What was measured, by scope."""
        found = {ENGINE: self.engine, TRANSFER: self.transfer, END_TO_END: self.end_to_end}
        return {scope: summary for scope, summary in found.items() if summary is not None}


Result = LatencyResult | ThroughputResult | CameraResult


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What to measure, and how."""

    mode: str = LATENCY
    """``latency``, ``throughput`` or ``camera``."""
    camera_fps: float = 30.0
    """Pace of the camera."""
    backends: Sequence[str | None] = (None,)
    """Names; ``None`` is the fastest that is installed."""
    precisions: Sequence[str | None] = (None,)
    """Names; ``None`` is the artefact's own. INT8 and engines have no other."""
    protocol: TimingConfig = dataclasses.field(default_factory=TimingConfig)
    """When to stop."""
    target_fps: float = TARGET_FPS
    """Rate to hold the end-to-end figure against."""
    reference: Path | None = None
    """fp32 artefact whose labels the others are held against; ``None`` looks beside each model."""
    preset: str | None = None
    """One of ``trtexec.PRESETS``: also tell latency as trtexec defines it."""
    measure_miou: Callable[[OpenModel], float] | None = None
    """Measures mIoU, 0 to 1; ``None`` leaves it out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """What ``esnet-bench`` found."""

    mode: str
    """``latency``, ``throughput`` or ``camera``."""
    results: tuple[Result, ...]
    """One for each model, backend and precision, all of one kind."""
    frames: str
    """What was timed on."""
    protocol: TimingConfig
    """When measuring stopped."""
    environment: dict[str, str]
    """Where and with what."""
    target_fps: float
    """Rate to reach."""
    peak_memory_bytes: int
    """Largest resident size of the process."""
    overhead_us: float
    """Time of a call to a backend that computes nothing: what the harness itself adds."""
    machine_reference: Summary
    """Of a fixed computation on the CPU, in turns with the models: how fast the machine was."""

    @property
    def target_ms(self) -> float:
        """Time a frame may take."""
        return 1e3 / self.target_fps

    def meets_target(self, result: Result) -> bool:
        """Tell whether a model is fast enough end to end, its interval's slow end included.

        Behind a camera: whether every frame was labelled before the next one came.
        """
        if isinstance(result, LatencyResult):
            return result.end_to_end.p50_high <= self.target_ms
        if isinstance(result, ThroughputResult):
            return result.end_to_end.fps_low >= self.target_fps
        return result.keeps_up

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        verdicts = [self.meets_target(result) for result in self.results]
        return {"schema": SCHEMA, **dataclasses.asdict(self), "meets_target": verdicts}


def bench_models(
    models: Sequence[Path],
    frames: FrameSet,
    options: BenchOptions | None = None,
    *,
    on_part: Callable[[str, float], None] = lambda text, share: None,
    on_open: Callable[[Segmenter], None] = lambda segmenter: None,
) -> BenchReport:
    """Measure every model on every backend at every precision; latency is measured in turns.

    Args:
        models: Artefacts.
        frames: What they are timed on.
        options: What to measure; ``None`` takes latency by the documented rules.
        on_part: Told what is measured, and how far that is, 0 to 1.
        on_open: Told of each model that was opened.

    Raises:
        ModelFileError: A model cannot be opened.
        InvalidInput: A backend or precision is not to be had.
        BenchmarkError: A target or a camera that is not positive, or a reference that does not run.
    """
    options = options or BenchOptions()
    _check(options)
    environment = describe_environment()
    with ExitStack() as stack:
        opened = open_models(
            models,
            options.backends,
            options.precisions,
            stack,
            reference=options.reference,
            on_open=on_open,
        )
        on_part("labels against the reference", 0.0)
        identities = []
        for model, agreement in zip(opened, check_labels(opened, frames), strict=True):
            on_part(f"{model.name}: mIoU" if options.measure_miou else model.name, 0.0)
            miou = options.measure_miou(model) if options.measure_miou else None
            identities.append(identify(model, agreement, miou))
        results: list[Result]
        if options.mode == LATENCY:
            latencies, pace = _latencies(opened, identities, frames, options, on_part)
            results = list(latencies)
        elif options.mode == THROUGHPUT:
            results = [
                measure_throughput(
                    model,
                    identity,
                    frames,
                    protocol=options.protocol,
                    on_part=lambda text: on_part(text, 0.0),
                )
                for model, identity in zip(opened, identities, strict=True)
            ]
        else:
            results = []
            for model, identity in zip(opened, identities, strict=True):
                on_part(f"{model.name} behind a camera", 0.0)
                seconds = min(10.0, options.protocol.cap_seconds)
                segment = model.segmenter.segment
                results.append(
                    measure_camera(identity, segment, frames, options.camera_fps, seconds=seconds)
                )
        if options.mode != LATENCY:
            pace = measure_latency([machine_reference()], options.protocol)[0]
    return BenchReport(
        mode=options.mode,
        results=tuple(results),
        frames=frames.description,
        protocol=options.protocol,
        environment={**environment, "gpu after": describe_gpu_state()},
        target_fps=options.target_fps,
        peak_memory_bytes=peak_memory_bytes(),
        overhead_us=measure_overhead_us(models[0], frames),
        machine_reference=pace,
    )


def measure_overhead_us(model: Path, frames: FrameSet) -> float:
    """Time calls to the null backend, which opens any artefact and computes nothing: median, microseconds."""
    with Segmenter.open(model, backend="null") as segmenter:
        batch = batch_from_frames(frames.frames[:1], segmenter.card)
        idle = Workload(
            name="null", scope=ENGINE, call=lambda index: segmenter.backend.infer(batch)
        )
        brief = TimingConfig(warmup_seconds=0.02, min_seconds=0.1, cap_seconds=0.5)
        return 1e3 * measure_latency([idle], brief)[0].p50


def _check(options: BenchOptions) -> None:
    require_preset(options.preset)
    if options.target_fps <= 0:
        raise BenchmarkError(
            f"the target must be above 0 frames a second, got {options.target_fps}"
        )
    if options.camera_fps <= 0:
        raise BenchmarkError(
            f"a camera gives more than 0 frames a second, got {options.camera_fps}",
            hint="for example --mode camera:30",
        )


def _latencies(
    opened: Sequence[OpenModel],
    identities: Sequence[Identity],
    frames: FrameSet,
    options: BenchOptions,
    on_part: Callable[[str, float], None],
) -> tuple[list[LatencyResult], Summary]:
    """Time all models and the machine_reference in turns, and then each model's stages."""
    timed = [_Timed(model, frames) for model in opened]
    summaries = measure_latency(
        [*(subject for one in timed for subject in one.subjects), machine_reference()],
        options.protocol,
        on_turn=lambda subject, share: on_part(f"{subject.name}, {subject.scope}", share),
    )
    results = []
    for index, (one, identity) in enumerate(zip(timed, identities, strict=True)):
        first, end_to_end = summaries[2 * index : 2 * index + 2]
        on_part(f"{identity.name}, stages", 0.0)
        device = one.device_summary(first.n)
        results.append(
            LatencyResult(
                **dataclasses.asdict(identity),
                engine=device or first,
                transfer=first if device else None,
                end_to_end=end_to_end,
                waterfall=measure_stages(one.model.segmenter, frames),
                trtexec=one.as_trtexec(options.preset, first.n) if options.preset else "",
            )
        )
    return results, summaries[-1]


class _Timed:
    """The two clocked scopes of a model; on a GPU the device's own clock runs along."""

    def __init__(self, model: OpenModel, frames: FrameSet) -> None:
        self.model = model
        self._ring = getattr(model.segmenter.backend, "ring", None)
        self._device_ms: list[tuple[float, float, float]] = []
        card = model.segmenter.card
        self._batches = cycle(
            [np.ascontiguousarray(batch_from_frames([frame], card)) for frame in frames.frames]
        )
        pictures = cycle(frames.frames)
        scope = ENGINE if self._ring is None else TRANSFER
        self.subjects = (
            Workload(name=model.name, scope=scope, call=self._infer),
            Workload(
                name=model.name,
                scope=END_TO_END,
                call=lambda index: model.segmenter.segment(pictures(index)),
            ),
        )

    def device_summary(self, count: int) -> Summary | None:
        """Summarize the kernels' time of the last ``count`` calls; ``None`` on a CPU."""
        kernels = [compute for _, compute, _ in self._device_ms[-count:]]
        return summarize(kernels) if kernels else None

    def as_trtexec(self, preset: str, count: int) -> str:
        """Tell the last ``count`` calls by trtexec's definition, and what trtexec itself finds.

        Raises:
            BenchmarkError: Not on a GPU, or trtexec failed.
        """
        if not self._device_ms:
            raise BenchmarkError(
                f"--preset {preset}: {self.model.name} runs on a CPU, trtexec measures GPUs",
                hint="give an engine, or leave --preset away",
            )
        ours = float(np.median([preset_ms(preset, times) for times in self._device_ms[-count:]]))
        is_engine = self.model.segmenter.backend.name == "tensorrt"
        theirs = (
            cross_check(self.model.path, self.model.segmenter.card, preset) if is_engine else None
        )
        return explain(ours, theirs, preset)

    def _infer(self, index: int) -> None:
        self.model.segmenter.backend.infer(self._batches(index))
        if self._ring is not None:
            self._device_ms.append(self._ring.stage_times_ms())
