"""Sustained rate: several frames in flight, by slots on a GPU, by streams of threads on a CPU."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.frames import FrameSet
from benchmarks.models import Identity, OpenModel
from benchmarks.timing.latency import END_TO_END, ENGINE, TimingConfig
from benchmarks.timing.statistics import median_interval
from runtime.media.frames import batch_from_frames, resize_map
from runtime.segmenter import Segmenter

NUM_WINDOWS = 20
"""Equal spans of time that a measurement is cut into for its interval."""
_STABLE_WITHIN = 1.05
_TRIAL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Concurrency:
    """How frames are kept in flight."""

    streams: int
    """Threads that call the backend, each with its own copy of the model."""
    threads: int | None
    """CPU threads in each; ``None`` leaves it to the library."""
    batch: int
    """Frames in a call."""
    slots: int = 1
    """Batches in flight in each stream: those of the ring on a GPU."""

    def __str__(self) -> str:
        streams = f"{self.streams} stream{'s' * (self.streams > 1)}"
        threads = "" if self.threads is None else f" x {self.threads} threads"
        slots = f", {self.slots} slots" if self.slots > 1 else ""
        return f"{streams}{threads}, batch {self.batch}{slots}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A sustained rate."""

    fps: float
    """Frames over wall time, first to last completion."""
    fps_low: float
    """Lower end of the bootstrap 95 % interval of the windows' median rate."""
    fps_high: float
    """Upper end."""
    num_frames: int
    """Frames completed."""
    seconds: float
    """Wall time."""
    is_stable: bool
    """Whether the first, middle and last third have rates within 5 % of one another."""


@dataclass(frozen=True, kw_only=True)
class ThroughputResult(Identity):
    """How many frames a second a model sustains."""

    layout: Concurrency
    """What was the fastest in short trials."""
    trials: dict[str, float]
    """Frames a second of every layout that was tried."""
    engine: Rate
    """Prepared batches in, outputs on the host out."""
    end_to_end: Rate
    """Decoded frames in, class maps of their size out."""


Pump = Callable[[], Generator[int, None, None]]
"""Starts something that yields the number of frames completed, again and again, until it is closed."""


def measure_throughput(
    model: OpenModel,
    identity: Identity,
    frames: FrameSet,
    *,
    protocol: TimingConfig,
    on_part: Callable[[str], None] = lambda text: None,
) -> ThroughputResult:
    """Find the layout that is fastest, then measure it on both scopes.

    Args:
        model: The open model; further copies are opened where streams need them.
        identity: What it is.
        frames: What it is fed.
        protocol: How long a measurement lasts; its samples are frames.
        on_part: Told what is measured.
    """
    trials: dict[str, float] = {}
    best: tuple[float, Concurrency] | None = None
    for layout in layouts_for(model.segmenter):
        on_part(f"{model.name}: trying {layout}")
        with ExitStack() as stack:
            pumps = _engine_pumps(model, layout, frames, stack)
            trial = min(_TRIAL_SECONDS, protocol.cap_seconds)
            fps = measure_rate(pumps, min_seconds=trial, min_frames=2, cap_seconds=3 * trial).fps
        trials[str(layout)] = fps
        if best is None or fps > best[0]:
            best = fps, layout
    assert best is not None  # there is always one layout
    rates = []
    for scope, make in ((ENGINE, _engine_pumps), (END_TO_END, _end_to_end_pumps)):
        on_part(f"{model.name}, {scope}")
        with ExitStack() as stack:
            pumps = make(model, best[1], frames, stack)
            rates.append(
                measure_rate(
                    pumps,
                    min_seconds=protocol.min_seconds,
                    min_frames=protocol.min_samples,
                    cap_seconds=protocol.cap_seconds,
                )
            )
    return ThroughputResult(
        **dataclasses.asdict(identity),
        layout=best[1],
        trials=trials,
        engine=rates[0],
        end_to_end=rates[1],
    )


def layouts_for(segmenter: Segmenter, *, cores: int | None = None) -> list[Concurrency]:
    """List the layouts worth trying: ring slots on a GPU; all cores together or apart on a CPU."""
    low, usual, high = segmenter.card.batch
    batches = sorted({low, usual, high})
    ring = getattr(segmenter.backend, "ring", None)
    if ring is not None:
        return [
            Concurrency(streams=1, threads=None, batch=batch, slots=ring.num_slots)
            for batch in batches
        ]
    if segmenter.backend.name == "null":
        return [Concurrency(streams=1, threads=None, batch=low)]
    cores = cores or len(os.sched_getaffinity(0))
    streams = sorted({1, max(1, cores // 4), max(1, cores // 2), cores})
    return [
        Concurrency(streams=number, threads=max(1, cores // number), batch=batch)
        for batch in batches
        for number in streams
    ]


def measure_rate(
    pumps: Sequence[Pump], *, min_seconds: float, min_frames: int, cap_seconds: float
) -> Rate:
    """Run pumps side by side, each in a thread, and count what they complete; the first round is warm-up."""
    marks: list[list[tuple[float, int]]] = [[] for _ in pumps]
    stop = threading.Event()
    problems: list[BaseException] = []
    barrier = threading.Barrier(len(pumps) + 1)

    def work(pump: Pump, own: list[tuple[float, int]]) -> None:
        try:
            with closing(pump()) as rounds:
                next(rounds)
                barrier.wait()
                for count in rounds:
                    own.append((time.perf_counter(), count))
                    if stop.is_set():
                        return
        except BaseException as error:  # raised to the caller below
            problems.append(error)
            barrier.abort()

    workers = [
        threading.Thread(target=work, args=(pump, own), daemon=True)
        for pump, own in zip(pumps, marks, strict=True)
    ]
    for worker in workers:
        worker.start()
    try:
        barrier.wait()
    except threading.BrokenBarrierError:
        for worker in workers:
            worker.join()
        raise problems[0] from None
    started = time.perf_counter()
    while not problems:
        time.sleep(0.02)
        seconds, done = time.perf_counter() - started, sum(map(len, marks))
        frames = sum(count for own in marks for _, count in list(own))
        if seconds >= cap_seconds and done:
            break
        if seconds >= min_seconds and frames >= min_frames:
            break
    stop.set()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]
    return _rate(started, sorted(mark for own in marks for mark in own))


def _rate(started: float, marks: Sequence[tuple[float, int]]) -> Rate:
    """Turn completions (time, frames) into a rate, and into windows for its interval."""
    times = np.array([time for time, _ in marks]) - started
    counts = np.array([count for _, count in marks], np.float64)
    seconds, total = float(times[-1]), int(counts.sum())
    done = np.concatenate([[0.0], np.cumsum(counts)])
    at = np.concatenate([[0.0], times])
    # Windows between completions, not of fixed length: a window never holds a part of a batch.
    windows = min(NUM_WINDOWS, len(times))
    edges = np.unique(np.linspace(0, len(times), windows + 1).round().astype(int))
    rates = np.diff(done[edges]) / np.maximum(np.diff(at[edges]), 1e-9)
    low, high = median_interval(rates)
    thirds = np.unique(np.linspace(0, len(times), 4).round().astype(int))
    pace = np.diff(done[thirds]) / np.maximum(np.diff(at[thirds]), 1e-9)
    return Rate(
        fps=total / seconds,
        fps_low=low,
        fps_high=high,
        num_frames=total,
        seconds=seconds,
        is_stable=len(pace) == 3 and bool(pace.max() <= pace.min() * _STABLE_WITHIN),
    )


def _engine_pumps(
    model: OpenModel, layout: Concurrency, frames: FrameSet, stack: ExitStack
) -> list[Pump]:
    """Make a pump for each stream that feeds prepared batches."""
    card = model.segmenter.card
    pictures = list(frames.frames)
    batches = [
        np.ascontiguousarray(batch_from_frames(_some(pictures, start, layout.batch), card))
        for start in range(min(len(pictures), 4))
    ]

    def pump_of(segmenter: Segmenter) -> Pump:
        backend = segmenter.backend
        return lambda: _keep_full(
            backend,
            layout,
            prepare=lambda index: batches[index % len(batches)],
            finish=lambda outputs, index: None,
        )

    return [pump_of(segmenter) for segmenter in _copies(model, layout, stack)]


def _end_to_end_pumps(
    model: OpenModel, layout: Concurrency, frames: FrameSet, stack: ExitStack
) -> list[Pump]:
    """Make a pump for each stream that feeds decoded frames and takes class maps of their size."""
    pictures = list(frames.frames)

    def pump_of(segmenter: Segmenter) -> Pump:
        card = segmenter.card

        def prepare(index: int) -> np.ndarray:
            chosen = _some(pictures, index * layout.batch, layout.batch)
            return np.ascontiguousarray(batch_from_frames(chosen, card))

        def finish(outputs: tuple[np.ndarray, ...], index: int) -> None:
            chosen = _some(pictures, index * layout.batch, layout.batch)
            for labels, frame in zip(outputs[0], chosen, strict=True):
                resize_map(labels, (frame.shape[0], frame.shape[1]))

        return lambda: _keep_full(segmenter.backend, layout, prepare=prepare, finish=finish)

    return [pump_of(segmenter) for segmenter in _copies(model, layout, stack)]


def _keep_full(
    backend: Any,
    layout: Concurrency,
    *,
    prepare: Callable[[int], np.ndarray],
    finish: Callable[[tuple[np.ndarray, ...], int], None],
) -> Generator[int, None, None]:
    """Keep as many batches in flight as there are slots, and yield the frames of each that comes back."""
    if layout.slots == 1:
        index = 0
        while True:
            finish(backend.infer(prepare(index)), index)
            index += 1
            yield layout.batch
    sent = taken = 0
    try:
        while True:
            while sent - taken < layout.slots:
                backend.submit(prepare(sent))
                sent += 1
            finish(backend.collect(), taken)
            taken += 1
            yield layout.batch
    finally:
        while taken < sent:
            backend.collect()
            taken += 1


def _copies(model: OpenModel, layout: Concurrency, stack: ExitStack) -> list[Segmenter]:
    """Get a segmenter for each stream: the open one where it will do, else fresh ones."""
    backend = model.segmenter.backend
    if layout.threads is None:
        return [model.segmenter]
    precision = None if model.segmenter.card.precision == "int8" else backend.precision
    return [
        stack.enter_context(
            Segmenter.open(
                model.path, backend=backend.name, precision=precision, threads=layout.threads
            )
        )
        for _ in range(layout.streams)
    ]


def _some(pictures: Sequence[np.ndarray], start: int, count: int) -> list[np.ndarray]:
    return [pictures[(start + offset) % len(pictures)] for offset in range(count)]
