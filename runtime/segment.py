"""Segment a whole source with overlapping decoding, inference and writing; unreadable frames are listed."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.artefact.advice import form_advice, quantization_advice
from runtime.console import is_terminal
from runtime.errors import InvalidInput, SourceLost
from runtime.media.selection import Selection
from runtime.media.sources import Frame, FrameSource, open_source
from runtime.output.outputs import Drawn, OpenOutputs, Outputs
from runtime.output.summary import SegmentReport, Statistics, frames_text
from runtime.output.video import has_h264
from runtime.pipeline import Pipeline
from runtime.segmenter import Result, Segmenter

_POLL_SECONDS = 0.1


def segment_source(
    source: FrameSource | Path | str,
    model_path: Path,
    outputs: Outputs | Path,
    *,
    selection: Selection | None = None,
    resize: Literal["stretch", "letterbox"] = "stretch",
    target_fps: float | None = None,
    backend: str | None = None,
    precision: str | None = None,
    device: str | int | None = None,
    allow_mismatch: bool = False,
) -> SegmentReport:
    """Segment the frames of a source.

    In the main thread, SIGINT and SIGTERM end the source: the frames in hand are written, and the report is
    returned. A second signal ends the program.

    Args:
        source: An open source, or one for ``open_source``.
        model_path: Exported model.
        outputs: What to write; a path gets overlays.
        selection: Frames to use; all by default.
        resize: As for ``Segmenter``.
        target_fps: Rate to check the results against.
        backend: As for ``open_backend``.
        precision: As for ``open_backend``.
        device: As for ``open_backend``.
        allow_mismatch: As for ``open_backend``.

    Raises:
        InvalidInput: Unusable source or output, or no readable frame.
        ModelFileError: Unusable model.
        BackendUnavailable: No installed backend can run it.
        OSError: An output cannot be written.
    """
    outputs = Outputs(path=outputs) if isinstance(outputs, Path) else outputs
    selection = selection or Selection()
    whole = source if isinstance(source, FrameSource) else open_source(source)
    used = selection.of(whole, outputs.has if outputs.resume else None)
    clock = _Clock(used)
    used = clock.source
    statistics, lost = Statistics(target_fps), None
    with (
        Segmenter.open(
            model_path,
            resize=resize,
            backend=backend,
            precision=precision,
            device=device,
            allow_mismatch=allow_mismatch,
        ) as segmenter,
        _one_opencv_thread(),
        _signals_noted() as stop,
    ):
        started = time.perf_counter()
        with outputs.open(segmenter.card, used, stop.set) as opened:
            try:
                for drawn in _drawn(segmenter, clock, opened, stop):
                    opened.write(drawn)
                    statistics.add(drawn.stages)
            except SourceLost as error:
                lost = error
            if not statistics.count and not stop.is_set() and used.num_frames != 0:
                raise lost or InvalidInput(
                    f"no frame of {used.name} could be read: {'; '.join(used.skipped[:3])}"
                )
        is_cut_short = stop.is_set() and not used.is_live
        is_whole = not (is_cut_short or outputs.resume) and selection == Selection()
        running = segmenter.backend
        return SegmentReport(
            output=outputs.path,
            num_frames=statistics.count,
            seconds=time.perf_counter() - started,
            backend=f"{running.name} {running.precision}, {running.device}",
            skipped=tuple(used.skipped),
            drops=used.drops,
            gaps=tuple(used.gaps),
            stages=statistics.percentiles(),
            target_fps=target_fps,
            misses=statistics.misses,
            is_cut_short=is_cut_short,
            lost=lost,
            warnings=tuple(
                _warnings(used, outputs, statistics.count if is_whole else None, segmenter)
            ),
        )


class _Clock:
    """Measures the stages that run inside ``Segmenter.stream``."""

    def __init__(self, source: FrameSource) -> None:
        self.source = replace(source, decode=self._frames)
        self._decode = source.decode
        self._read: deque[tuple[float, float]] = deque()  # duration, ms, and end

    def _frames(self, source: FrameSource) -> Iterator[Frame]:
        started = time.perf_counter()
        for frame in self._decode(source):
            ended = time.perf_counter()
            self._read.append((1e3 * (ended - started), ended))
            yield frame
            started = time.perf_counter()

    def results(self, results: Iterable[Result]) -> Iterator[tuple[Result, dict[str, float]]]:
        """Add to each result what its stages took, ms."""
        for result in results:
            read, ended = self._read.popleft()
            wait = 1e3 * (time.perf_counter() - ended) - result.infer_ms
            stages = {"read": read, "wait": wait, "infer": result.infer_ms}
            if self.source.is_live:
                stages["age"] = 1e3 * self.source.age(result.timestamp)
            yield result, stages


def _drawn(
    segmenter: Segmenter, clock: _Clock, opened: OpenOutputs, stop: _Flag
) -> Iterator[Drawn]:
    """Get drawn results until the source ends or the user ends it, with a progress bar."""
    source = clock.source
    results = clock.results(segmenter.stream(source))
    # Results of a live source must not grow old in a queue.
    size = 1 if source.is_live else 4
    pipeline = Pipeline(results, opened.draw, queue_size=size, while_stopping=source.stop)
    with _progress() as progress, closing(pipeline):
        task = progress.add_task(Path(source.name).name, total=source.num_frames)
        while True:
            if stop.is_set():
                source.stop()
            try:
                drawn = pipeline.next_within(_POLL_SECONDS)
            except queue.Empty:
                opened.wait()
                continue
            except StopIteration:
                return
            yield drawn
            progress.advance(task)


class _Flag:
    """Set by a signal handler; an ``Event`` could wait for a lock that the interrupted code holds."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


@contextmanager
def _signals_noted() -> Iterator[_Flag]:
    """Note the first SIGINT or SIGTERM; the next one has its usual effect. In the main thread only."""
    flag = _Flag()
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(*_: object) -> None:
        flag.set()
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background job
                before[number] = signal.signal(number, note)
    try:
        yield flag
    finally:
        restore()


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV from starting a thread for each core: the stages use them all."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _warnings(
    source: FrameSource, outputs: Outputs, count: int | None, segmenter: Segmenter
) -> Iterator[str]:
    """Get warnings; ``count`` is that of the frames if all were wanted."""
    for advise in (form_advice, quantization_advice):
        if advice := advise(segmenter.card, segmenter.backend.name):
            yield advice
    yield from segmenter.backend.notes
    if outputs.path is not None and outputs.path.suffix.lower() == ".mp4" and not has_h264():
        yield (
            f"{outputs.path} is MPEG-4, which browsers do not play; H.264 needs PyAV: "
            "pip install 'esnet-deploy[video]'"
        )
    if source.num_frames and count is not None and count + len(source.skipped) < source.num_frames:
        yield (
            f"{source.name} ended after {frames_text(count)}, its header promises {source.num_frames}: "
            "the file may be truncated"
        )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not is_terminal(),
    )
