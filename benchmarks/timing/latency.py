"""Latency of several workloads, one batch in flight, in turns so that clock drift affects all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scopes import ENGINE
from benchmarks.timing.statistics import Summary, summarize
from runtime.backends.base import Backend

_WINDOW, _SETTLED_WITHIN = 10, 1.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A timed function."""

    name: str
    """Name for tables."""
    scope: str
    """Key of ``benchmarks.scopes.SCOPES``."""
    call: Callable[[int], object]
    """Processes the i-th batch and returns when the result is complete."""
    frames: int = 1
    """Frames of a batch."""
    after: Callable[[], object] = lambda: None
    """Called after each timed call, outside the clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingConfig:
    """Length of warm-up and measurement of each workload."""

    warmup_seconds: float = 1.0
    """Minimum warm-up time, seconds."""
    warmup_calls: int = 50
    """Minimum warm-up calls; warm-up also lasts until the last three windows agree within 2 %."""
    warmup_cap_seconds: float = 5.0
    """Maximum warm-up time, seconds; ``cap_seconds`` limits it too."""
    min_seconds: float = 3.0
    """Minimum measurement time, seconds."""
    min_samples: int = 300
    """Minimum number of samples."""
    cap_seconds: float = 20.0
    """Maximum measurement time, seconds."""
    block_seconds: float = 0.5
    """Length of a turn, seconds; the first call of a turn is not timed."""


@dataclass(slots=True)
class _Run:
    """Timer of one workload, with the samples so far."""

    workload: Workload
    config: TimingConfig
    num_calls: int = 0
    samples_ms: list[float] = field(default_factory=list)
    total_ms: float = 0.0

    def call(self) -> float:
        """Call the workload once and return the milliseconds."""
        started = time.perf_counter_ns()
        self.workload.call(self.num_calls)
        elapsed_ms = (time.perf_counter_ns() - started) / 1e6
        self.num_calls += 1
        return elapsed_ms

    def warm_up(self) -> None:
        config, times = self.config, [self.call()]
        cap_ms = min(config.warmup_cap_seconds, config.cap_seconds) * 1e3
        while (total_ms := sum(times)) < cap_ms:
            is_long_enough = total_ms >= config.warmup_seconds * 1e3
            if is_long_enough and len(times) >= config.warmup_calls and _is_settled(times):
                return
            times.append(self.call())

    def turn(self) -> None:
        """Make one untimed call, then timed calls until the turn or the measurement ends."""
        self.call()
        ends = time.perf_counter() + self.config.block_seconds
        while self.progress < 1:
            self.samples_ms.append(self.call())
            self.total_ms += self.samples_ms[-1]
            self.workload.after()
            if time.perf_counter() >= ends:
                return

    @property
    def progress(self) -> float:
        """Completed part of the measurement, 0 to 1."""
        seconds, config = self.total_ms / 1e3, self.config
        by_time = seconds / config.min_seconds if config.min_seconds else 1.0
        by_count = len(self.samples_ms) / config.min_samples
        return min(1.0, max(min(by_time, by_count), seconds / config.cap_seconds))


def measure_latency(
    workloads: Sequence[Workload],
    config: TimingConfig,
    *,
    on_turn: Callable[[Workload, float], None] = lambda workload, progress: None,
) -> list[Summary]:
    """Warm up all workloads, then time them in turns; return a summary for each, in order.

    ``on_turn`` is called after each turn with the workload and its progress, 0 to 1.
    """
    runs = [_Run(workload, config) for workload in workloads]
    for run in runs:
        run.warm_up()
    while pending := [run for run in runs if run.progress < 1]:
        for run in pending:
            run.turn()
            on_turn(run.workload, run.progress)
    return [summarize(run.samples_ms, run.workload.frames) for run in runs]


def machine_reference() -> Workload:
    """Return a fixed computation that shows the speed of the machine: a 512x512 float32 matrix product.

    Timed in turns with the models, it tells a slow machine (lower clocks, other load) from a slow model.
    """
    random = np.random.default_rng(0)
    left, right = random.random((2, 512, 512), dtype=np.float32)
    result = np.empty_like(left)
    return Workload(
        name="machine reference",
        scope=ENGINE,
        call=lambda index: np.matmul(left, right, out=result),
    )


def engine_workload(name: str, backend: Backend, batches: Sequence[np.ndarray]) -> Workload:
    """Return the inference of batches of one size in a cycle: input on the host, outputs on the host."""
    return Workload(
        name=name,
        scope=ENGINE,
        call=lambda index: backend.infer(batches[index % len(batches)]),
        frames=len(batches[0]),
    )


def _is_settled(times: Sequence[float]) -> bool:
    """Check that the medians of the last three windows of calls agree within 2 %."""
    if len(times) < 3 * _WINDOW:
        return False
    medians = np.median(np.reshape(times[-3 * _WINDOW :], (3, _WINDOW)), axis=1)
    return bool(medians.max() <= medians.min() * _SETTLED_WITHIN)
