"""Sustained throughput of ``Backend.stream`` and ``Segmenter.stream``."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from benchmarks.frames import FrameSet
from benchmarks.scopes import END_TO_END, HOST, PINNED
from benchmarks.timing.latency import TimingConfig
from benchmarks.timing.statistics import bootstrap_interval, is_steady
from runtime.backends.base import Backend
from runtime.media.frames import batch_from_frames
from runtime.segmenter import Segmenter
from runtime.slots import InputSlot

_FULL_BATCH_MS = 1e3
"""Frames wait for the others of their batch; they are in memory, so that it never takes as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A sustained rate."""

    n: int
    """Finished batches."""
    seconds: float
    """Wall time, seconds."""
    fps: float
    """Frames per second: all frames over the time."""
    fps_low: float
    """Lower end of the bootstrap 95 % interval of ``fps``."""
    fps_high: float
    """Upper end of the bootstrap 95 % interval of ``fps``."""
    is_stable: bool
    """True if the rates of the first, middle and last third differ by at most 5 %."""


def measure_throughput(
    segmenter: Segmenter, frames: FrameSet, size: int, config: TimingConfig
) -> dict[str, Rate]:
    """Measure the rate of each scope with batches of ``size`` frames and all slots in flight."""
    backend, card = segmenter.backend, segmenter.card
    batches = [batch_from_frames(group, card) for group in frames.groups(size)]
    streams: dict[str, Generator[object]] = {HOST: backend.stream(cycle(batches))}
    if hasattr(backend, "ring"):  # its slots hold the batches of the host's run
        streams[PINNED] = backend.stream(filled_slots(backend, size))
    results = segmenter.stream(cycle(frames.frames), batch=size, max_wait_ms=_FULL_BATCH_MS)
    streams[END_TO_END] = _grouped(results, size)
    return {
        scope: measure_rate(stream, size, config, in_flight=backend.num_slots)
        for scope, stream in streams.items()
    }


def filled_slots(backend: Backend, size: int) -> Iterator[InputSlot]:
    """Acquire slots endlessly, with the frames that they already hold."""
    while True:
        slot = backend.acquire()
        slot.num_frames = size
        yield slot


def measure_rate(
    batches: Generator[object], size: int, config: TimingConfig, *, in_flight: int
) -> Rate:
    """Time an endless stream of finished batches of ``size`` frames, and close it.

    Calls and samples of ``config`` are batches. Those that are in flight together may finish together, so
    the interval resamples blocks of as many.
    """
    with closing(batches):
        warm_up_cap = min(config.warmup_cap_seconds, config.cap_seconds)
        _take(batches, config.warmup_calls, config.warmup_seconds, warm_up_cap)
        marks = _take(batches, config.min_samples, config.min_seconds, config.cap_seconds)
    intervals = np.diff(marks)
    low, high = bootstrap_interval(intervals, np.mean, least_block=in_flight)
    thirds = [part.mean() for part in np.array_split(intervals, 3) if len(part)]
    return Rate(
        n=len(intervals),
        seconds=marks[-1] - marks[0],
        fps=float(size / intervals.mean()),
        fps_low=size / high,
        fps_high=size / low,
        is_stable=len(thirds) == 3 and is_steady(thirds),
    )


def _take(
    batches: Iterator[object], num_batches: int, seconds: float, cap_seconds: float
) -> list[float]:
    """Take batches until both minima or the cap are reached; returns the times of start and batches."""
    marks = [time.perf_counter()]
    while True:
        next(batches)
        marks.append(time.perf_counter())
        passed = marks[-1] - marks[0]
        if (len(marks) > num_batches and passed >= seconds) or passed >= cap_seconds:
            return marks


def _grouped(results: Generator[object], size: int) -> Generator[object]:
    """Yield once for each ``size`` results."""
    with closing(results):
        while True:
            yield list(islice(results, size))
