"""Latency of several subjects, one call in flight, in turns: a drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.timing.statistics import Summary, summarize

ENGINE, TRANSFER, END_TO_END = "engine", "transfer", "end to end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Something to time."""

    name: str
    """For the table."""
    scope: str
    """What is inside the clock: ``engine``, ``transfer`` or ``end to end``."""
    call: Callable[[int], object]
    """Does the work for the i-th frame, and returns only when it is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingConfig:
    """When warm-up and measurement of a subject may end; the defaults are those of the documentation."""

    warmup_seconds: float = 1.0
    """Warm-up lasts at least so long,"""
    warmup_calls: int = 50
    """at least so many calls, and until the last three windows of calls agree within 2 %;"""
    warmup_cap_seconds: float = 5.0
    """but no longer than this."""
    min_seconds: float = 3.0
    """Measurement lasts at least so long"""
    min_samples: int = 300
    """and at least so many samples;"""
    cap_seconds: float = 20.0
    """but no longer than this."""
    block_seconds: float = 0.5
    """Subjects take turns of this length; the first call of a turn is not timed."""


@dataclass(slots=True)
class _Run:
    """What was measured of a subject so far."""

    subject: Workload
    protocol: TimingConfig
    calls: int = 0
    samples_ms: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """Take one turn: an untimed call, then timed ones."""
        self.call()
        ends = time.perf_counter() + self.protocol.block_seconds
        while not self.is_done:
            self.samples_ms.append(self.call())
            if time.perf_counter() >= ends:
                return

    def warm_up(self) -> None:
        """Call until warm (see ``TimingConfig``)."""
        protocol, times = self.protocol, [self.call()]
        while sum(times) < protocol.warmup_cap_seconds * 1e3:
            is_long_enough = sum(times) >= protocol.warmup_seconds * 1e3
            if is_long_enough and len(times) >= protocol.warmup_calls and _is_settled(times):
                return
            times.append(self.call())

    @property
    def is_done(self) -> bool:
        """Whether enough was measured."""
        seconds = sum(self.samples_ms) / 1e3
        is_enough = (
            seconds >= self.protocol.min_seconds
            and len(self.samples_ms) >= self.protocol.min_samples
        )
        return is_enough or seconds >= self.protocol.cap_seconds

    def call(self) -> float:
        """Call the subject: milliseconds."""
        started = time.perf_counter_ns()
        self.subject.call(self.calls)
        elapsed_ms = (time.perf_counter_ns() - started) / 1e6
        self.calls += 1
        return elapsed_ms


def measure_latency(
    subjects: Sequence[Workload],
    protocol: TimingConfig | None = None,
    *,
    on_turn: Callable[[Workload, float], None] = lambda subject, share: None,
) -> list[Summary]:
    """Time subjects in turns.

    Args:
        subjects: What to time; each is warmed up first.
        protocol: When to stop; ``None`` takes the documented rule.
        on_turn: Told after each turn how far its subject is, 0 to 1.

    Returns:
        A summary for each subject, in order; every sample of every turn is in it.
    """
    protocol = protocol or TimingConfig()
    runs = [_Run(subject, protocol) for subject in subjects]
    for run in runs:
        run.warm_up()
    while pending := [run for run in runs if not run.is_done]:
        for run in pending:
            run.turn()
            on_turn(run.subject, _progress(run))
    return [summarize(run.samples_ms) for run in runs]


class TimedBlocks:
    """Times a subject in blocks, so that others can have their turn between."""

    def __init__(self, subject: Workload) -> None:
        """Call it three times to warm up."""
        self._run = _Run(subject, TimingConfig())
        for _ in range(3):
            self._run.call()

    def take(self, seconds: float, min_calls: int) -> list[float]:
        """Call it once untimed, then for at least so long and so often: milliseconds of each call."""
        self._run.call()
        times = [self._run.call() for _ in range(min_calls)]
        while sum(times) < seconds * 1e3:
            times.append(self._run.call())
        return times


def machine_reference() -> Workload:
    """Make a fixed computation that tells how fast the machine is: a product of 512x512 float32 matrices.

    Timed in turns with the models, it shows a neighbour on the same cores or a lower clock, which no
    statistic of a single run can tell from a slower model.
    """
    random = np.random.default_rng(0)
    left, right = random.random((2, 512, 512), dtype=np.float32)
    result = np.empty_like(left)
    return Workload(
        name="machine_reference",
        scope=ENGINE,
        call=lambda index: np.matmul(left, right, out=result),
    )


def cycle(items: Sequence[np.ndarray]) -> Callable[[int], np.ndarray]:
    """Turn a list into a function of the call number that goes round it."""
    return lambda index: items[index % len(items)]


def _progress(run: _Run) -> float:
    """Estimate how much of the measurement is done, 0 to 1."""
    seconds, protocol = sum(run.samples_ms) / 1e3, run.protocol
    if run.is_done:
        return 1.0
    by_rule = min(
        _share(seconds, protocol.min_seconds), _share(len(run.samples_ms), protocol.min_samples)
    )
    return max(by_rule, seconds / protocol.cap_seconds)


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole else 1.0


def _is_settled(times: Sequence[float], *, window: int = 10, within: float = 1.02) -> bool:
    """Tell whether the medians of the last three windows agree."""
    medians = [float(np.median(chunk)) for chunk in _last_windows(times, window)]
    return len(medians) == 3 and max(medians) <= min(medians) * within


def _last_windows(times: Sequence[float], window: int) -> Iterator[Sequence[float]]:
    for end in (0, window, 2 * window):
        chunk = times[len(times) - end - window : len(times) - end]
        if len(chunk) == window:
            yield chunk
