"""Sustained throughput: several batches in flight, in slots on a GPU or in parallel streams on a CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.frames import FrameSet
from benchmarks.models import ModelIdentity, OpenModel, class_map
from benchmarks.timing.latency import END_TO_END, ENGINE, TimingConfig, cycle
from benchmarks.timing.statistics import is_steady, median_interval
from runtime.machine.machine import num_cores
from runtime.media.frames import batch_from_frames, resize_map
from runtime.segmenter import Segmenter

_NUM_WINDOWS = 20
_TRIAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Number of batches in flight and their size."""

    streams: int
    """Threads that call the backend, each with its own copy of the model."""
    threads: int | None
    """CPU threads per stream; ``None`` uses the default of the library."""
    batch: int
    """Frames per call."""
    slots: int = 1
    """Batches in flight per stream: the slots of the ring on a GPU."""

    def __str__(self) -> str:
        streams = f"{self.streams} stream{'s' * (self.streams > 1)}"
        threads = "" if self.threads is None else f" x {self.threads} threads"
        slots = f", {self.slots} slots" if self.slots > 1 else ""
        return f"{streams}{threads}, batch {self.batch}{slots}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A sustained rate."""

    fps: float
    """Frames per second from the start of the clock to the last completion."""
    fps_low: float
    """Lower end of the bootstrap 95 % interval of the median rate of 20 windows."""
    fps_high: float
    """Upper end of the bootstrap 95 % interval of the median rate of 20 windows."""
    num_frames: int
    """Completed frames."""
    seconds: float
    """Wall time, seconds."""
    is_stable: bool
    """True if the rates of the first, middle and last third differ by at most 5 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThroughputResult:
    """Sustained throughput of a model."""

    model: ModelIdentity
    """The measured model."""
    concurrency: Concurrency
    """Fastest setting of the trials."""
    trials: dict[str, float]
    """Frames per second of each setting in a short trial."""
    scopes: dict[str, Rate]
    """Rates by scope. ``engine``: prepared batch in, outputs on the host out. ``end to end``: decoded frames
    in, class maps of their size out."""


Pump = Generator[int, None, None]
"""Runs batches endlessly and yields the number of frames of each completed batch."""


def measure_throughput(
    model: OpenModel,
    frames: FrameSet,
    config: TimingConfig,
    on_part: Callable[[str, float], None],
) -> ThroughputResult:
    """Find the fastest concurrency in short trials, then measure both scopes with it.

    The samples of ``config`` are frames. ``on_part`` is called with the current part of the measurement.
    """

    def rate_of(concurrency: Concurrency, scope: str, config: TimingConfig) -> Rate:
        on_part(f"{model.identity.name}, {scope}, {concurrency}", 0.0)
        with ExitStack() as stack:
            return measure_rate(_make_pumps(model, scope, concurrency, frames, stack), config)

    seconds = min(_TRIAL_SECONDS, config.cap_seconds)
    trial = TimingConfig(min_seconds=seconds, min_samples=2, cap_seconds=3 * seconds)
    concurrencies = possible_concurrencies(model.segmenter)
    trials = {concurrency: rate_of(concurrency, ENGINE, trial).fps for concurrency in concurrencies}
    best = max(concurrencies, key=lambda concurrency: trials[concurrency])
    return ThroughputResult(
        model=model.identity,
        concurrency=best,
        trials={str(concurrency): fps for concurrency, fps in trials.items()},
        scopes={scope: rate_of(best, scope, config) for scope in (ENGINE, END_TO_END)},
    )


def possible_concurrencies(segmenter: Segmenter) -> list[Concurrency]:
    """List the settings to try: batch sizes, and on a CPU several numbers of streams."""
    backend, slots = segmenter.backend, 1
    settings: list[tuple[int, int | None]] = [(1, None)]
    if (ring := getattr(backend, "ring", None)) is not None:
        slots = ring.num_slots
    elif backend.name != "null":
        cores = num_cores()
        streams = sorted({1, max(1, cores // 4), max(1, cores // 2), cores})
        settings = [(number, max(1, cores // number)) for number in streams]
    return [
        Concurrency(streams, threads, batch, slots)
        for batch in sorted(set(segmenter.card.batch))
        for streams, threads in settings
    ]


def measure_rate(pumps: Sequence[Pump], config: TimingConfig) -> Rate:
    """Run pumps in parallel, one thread each, and count the completed frames.

    The first batch of each pump is warm-up. An error in a pump stops the others and is raised.
    """
    marks: list[tuple[float, int]] = []
    stop = threading.Event()

    def work(pump: Pump) -> None:
        try:
            with closing(pump):
                for num_frames in pump:
                    marks.append((time.perf_counter(), num_frames))
                    if stop.is_set():
                        return
        finally:
            stop.set()

    for pump in pumps:
        next(pump)
    with ThreadPoolExecutor(len(pumps)) as pool:
        started = time.perf_counter()
        workers = [pool.submit(work, pump) for pump in pumps]
        try:
            while not stop.wait(0.02):
                seconds = time.perf_counter() - started
                num_frames = sum(count for _, count in list(marks))
                is_enough = seconds >= config.min_seconds and num_frames >= config.min_samples
                if is_enough or (marks and seconds >= config.cap_seconds):
                    stop.set()
        finally:
            stop.set()
    for worker in workers:
        worker.result()
    return _rate(started, sorted(marks))


def _rate(started: float, marks: Sequence[tuple[float, int]]) -> Rate:
    """Compute the rate from completions (time, frames)."""
    times = np.array([started, *(time for time, _ in marks)]) - started
    done = np.cumsum([0, *(count for _, count in marks)])

    def rates(num_windows: int) -> np.ndarray:
        # Windows end at completions, so that none contains a part of a batch.
        edges = np.unique(np.linspace(0, len(marks), num_windows + 1).round().astype(int))
        values: np.ndarray = np.diff(done[edges]) / np.maximum(np.diff(times[edges]), 1e-9)
        return values

    low, high = median_interval(rates(_NUM_WINDOWS))
    return Rate(
        fps=float(done[-1] / times[-1]),
        fps_low=low,
        fps_high=high,
        num_frames=int(done[-1]),
        seconds=float(times[-1]),
        is_stable=len(marks) >= 3 and is_steady(rates(3)),
    )


def _make_pumps(
    model: OpenModel, scope: str, concurrency: Concurrency, frames: FrameSet, stack: ExitStack
) -> list[Pump]:
    """Make a pump for each stream: with the open model, or with copies that use fewer threads.

    ``end to end`` includes making batches and resizing class maps.
    """
    card, size = model.segmenter.card, concurrency.batch
    image_at = cycle(frames.frames)

    def prepare(index: int) -> np.ndarray:
        return batch_from_frames([image_at(index * size + k) for k in range(size)], card)

    def finish(outputs: tuple[np.ndarray, ...], index: int) -> None:
        if scope == END_TO_END:
            for k, output in enumerate(outputs[0]):
                image = image_at(index * size + k)
                resize_map(class_map(output, card), (image.shape[0], image.shape[1]))

    prepared = cycle([prepare(index) for index in range(4)])
    next_batch = prepare if scope == END_TO_END else prepared
    segmenters = [model.segmenter]
    if concurrency.threads is not None:
        own = model.identity
        options: dict[str, Any] = {"backend": own.backend, "precision": own.precision}
        open_copy = partial(Segmenter.open, model.path, threads=concurrency.threads, **options)
        segmenters = [stack.enter_context(open_copy()) for _ in range(concurrency.streams)]
    return [_keep_full(each.backend, concurrency, next_batch, finish) for each in segmenters]


def _keep_full(
    backend: Any,
    concurrency: Concurrency,
    prepare: Callable[[int], np.ndarray],
    finish: Callable[[tuple[np.ndarray, ...], int], None],
) -> Pump:
    """Keep all slots busy; yield the number of frames of each finished batch."""
    sent = taken = 0
    try:
        while True:
            if concurrency.slots == 1:
                outputs = backend.infer(prepare(taken))
            else:
                while sent - taken < concurrency.slots:
                    backend.submit(prepare(sent))
                    sent += 1
                outputs = backend.collect()
            taken += 1
            finish(outputs, taken - 1)
            yield concurrency.batch
    finally:
        for _ in range(sent - taken):
            backend.collect()
