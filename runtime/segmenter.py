"""``Segmenter``: frames of any size in, class maps of the same size out."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import cv2
import numpy as np

from runtime.artefact.card import CONFIDENCE, LABELS, LOGITS, ModelCard
from runtime.backend import open_backend
from runtime.backends.base import Backend
from runtime.errors import InvalidInput
from runtime.media.frames import batch_from_frames, check_frame, fill_batch, resize_map
from runtime.media.overlay import draw_overlay
from runtime.media.sources import Frame, FrameSource, open_source
from runtime.pipeline import Pipeline
from runtime.slots import InputSlot


@dataclass(frozen=True, slots=True)
class Result:
    """One segmented frame of a stream."""

    frame: np.ndarray
    """The frame, uint8 (H, W, 3)."""
    labels: np.ndarray
    """Indices of ``card.class_names``, uint8 (H, W)."""
    confidence: np.ndarray | None
    """Top softmax probability x 255, uint8 (H, W); ``None`` if the artefact has no such output."""
    index: int
    """Number of the frame in the stream, from 0."""
    timestamp: float
    """Position in the video, or for arrays the time since the first one was read; seconds."""
    name: str
    """Name of the frame; see ``runtime.media.sources.Frame``."""
    infer_ms: float = 0.0
    """Time that its batch was in flight, ms."""


class Segmenter(AbstractContextManager["Segmenter"]):
    """An open artefact that takes frames of any size, from any thread.

    Example:
        >>> with Segmenter.open("model.onnx") as segmenter:
        ...     labels = segmenter.segment(frame)
        ...     image = segmenter.overlay(frame, labels)
        ...     shares = [(result.labels == 0).mean() for result in segmenter.stream("photos")]
        >>> labels.shape == frame.shape[:2], image.shape == frame.shape, len(shares)
        (True, True, 2)
    """

    def __init__(self, backend: Backend, *, color: str = "rgb", resize: str = "stretch") -> None:
        """Wrap an open backend; the segmenter owns it and closes it.

        Args:
            backend: The backend.
            color: Channel order of all frames, in and out: ``rgb``, or ``bgr`` (OpenCV's).
            resize: How a frame of another shape fits the input: ``stretch``, or ``letterbox``, which keeps
                its aspect ratio between black bars.

        Raises:
            InvalidInput: Another channel order or resize.
        """
        if color not in ("rgb", "bgr"):
            raise InvalidInput(f"color must be 'rgb' or 'bgr', got {color!r}")
        if resize not in ("stretch", "letterbox"):
            raise InvalidInput(f"resize must be 'stretch' or 'letterbox', got {resize!r}")
        self.backend, self.color, self.resize = backend, color, resize
        self._form: dict[str, Any] = {"color": color, "letterbox": resize == "letterbox"}

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        color: str = "rgb",
        resize: str = "stretch",
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        device: str | int | None = None,
        timing: bool = False,
        allow_mismatch: bool = False,
    ) -> Segmenter:
        """Open an artefact; the constructor describes ``color`` and ``resize``, ``open_backend`` the rest."""
        opened = open_backend(
            path,
            backend,
            precision=precision,
            threads=threads,
            device=device,
            timing=timing,
            allow_mismatch=allow_mismatch,
        )
        try:
            return cls(opened, color=color, resize=resize)
        except BaseException:
            opened.close()
            raise

    @property
    def card(self) -> ModelCard:
        """The artefact's card: classes, palette, sizes."""
        return self.backend.card

    @overload
    def segment(self, frames: np.ndarray) -> np.ndarray: ...
    @overload
    def segment(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]: ...
    def segment(self, frames: np.ndarray | Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """Classify every pixel of one frame or of several.

        More frames than ``card.batch.opt`` run as batches in flight.

        Args:
            frames: uint8, one frame (H, W, 3), a batch (N, H, W, 3), or a list of frames of any sizes.

        Returns:
            Indices of ``card.class_names``, uint8, fresh: (H, W) for a frame, (N, H, W) for a batch, a list
            of (H, W) for a list.

        Raises:
            InvalidInput: No frames, or of another dtype, rank or number of channels.
        """
        return _like(frames, [labels for labels, _ in self._maps(frames)])

    @overload
    def segment_with_confidence(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def segment_with_confidence(
        self, frames: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]: ...
    def segment_with_confidence(self, frames: Any) -> Any:
        """Classify every pixel and return the confidence of each.

        Args:
            frames: As for ``segment``.

        Returns:
            Labels as from ``segment``, and the top softmax probability x 255, uint8, of the same shape.

        Raises:
            InvalidInput: As for ``segment``, or the artefact has no confidence output.
        """
        if CONFIDENCE not in self.card.outputs:
            raise InvalidInput(
                f"the artefact gives {', '.join(self.card.outputs)}, no confidence",
                hint="export it with --output labels+confidence",
            )
        labels, confidence = zip(*self._maps(frames), strict=True)
        return _like(frames, labels), _like(frames, confidence)

    def stream(
        self,
        source: Path | str | FrameSource | Iterable[np.ndarray],
        *,
        batch: int | Literal["auto"] = "auto",
        max_wait_ms: float = 0.0,
    ) -> Generator[Result]:
        """Segment a source with several batches in flight, in order.

        One thread reads the frames and one makes batches of those that are ready. Both have ended when the
        iteration ends, by the last frame, an error, Ctrl-C or ``close()``. An error is raised after the
        results of the frames before it. A live source is segmented one frame at a time, always the newest.

        Args:
            source: Path for ``open_source``, an open source, or frames as for ``segment``.
            batch: Frames in a batch at most; ``auto`` takes ``card.batch.opt`` on a GPU, and the smallest
                batch on a CPU.
            max_wait_ms: Time that a frame may wait for later ones to share its batch, ms.

        Yields:
            One result per frame; its arrays are the caller's.

        Raises:
            InvalidInput: Unusable source, frame or batch size.
        """
        allowed = self.card.batch
        if batch == "auto":
            batch = allowed.opt if self.backend.prefers_batches else allowed.min
        self.backend.check_batch_size(batch)
        frames = open_source(source) if isinstance(source, (str, Path)) else source
        if isinstance(frames, FrameSource) and frames.is_live:
            return self._stream_live(frames)
        return self._stream(frames, batch, max_wait_ms / 1e3)

    def overlay(
        self,
        frame: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        alpha: float = 0.5,
        legend: bool = True,
    ) -> np.ndarray:
        """Blend the class colours over a frame; see ``runtime.media.overlay.draw_overlay``.

        Args:
            frame: uint8 (H, W, 3).
            labels: uint8 (H, W) as from ``segment``; ``None`` computes them.
            alpha: Weight of the colours, 0 to 1.
            legend: True to name the visible classes.

        Returns:
            uint8 (H, W, 3), fresh.
        """
        if labels is None:
            ((labels, _),) = self._maps(frame)
        return draw_overlay(frame, labels, self.card, alpha=alpha, legend=legend, color=self.color)

    def close(self) -> None:
        """Close the backend; a second call does nothing."""
        self.backend.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _maps(
        self, frames: np.ndarray | Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Get labels and confidence of each frame."""
        items: list[np.ndarray] = [frames] if _is_single(frames) else [*frames]  # type: ignore[list-item]
        if not items:
            raise InvalidInput("a batch needs at least one frame, got none")
        for frame in items:
            check_frame(frame)
        if len(items) > self.card.batch.opt:
            return [(result.labels, result.confidence) for result in self.stream(items)]
        outputs = self.backend.infer(batch_from_frames(items, self.card, **self._form))
        return list(self._maps_of(items, outputs))

    def _maps_of(
        self, frames: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Resize the maps of a batch to their frames; the padding of a fixed batch is left out."""
        arrays = dict(zip(self.card.outputs, outputs, strict=True))
        if LOGITS in arrays:
            arrays[LABELS] = arrays[LOGITS].argmax(1).astype(np.uint8)
        for index, frame in enumerate(frames):
            labels, *confidence = (
                resize_map(arrays[name][index], frame.shape[:2], letterbox=self._form["letterbox"])
                for name in (LABELS, CONFIDENCE)
                if name in arrays
            )
            yield labels, (confidence[0] if confidence else None)

    def _numbered(self, source: FrameSource | Iterable[np.ndarray]) -> Generator[Frame]:
        """Give frames of all sources one form and one channel order."""
        started = time.monotonic()
        items: Iterable[Any] = source
        for index, item in enumerate(items):
            if not isinstance(item, Frame):
                check_frame(item)
                yield Frame(item, f"{index:06d}", time.monotonic() - started)
            elif self.color == "bgr":
                yield replace(item, image=cv2.cvtColor(item.image, cv2.COLOR_RGB2BGR))
            else:
                yield item

    def _stream_live(self, source: FrameSource) -> Generator[Result]:
        """Segment one frame at a time: the source has a thread, and frames would only age in a queue."""
        with closing(self._numbered(source)) as frames:
            for index, frame in enumerate(frames):
                started = time.monotonic()
                ((labels, confidence),) = self._maps(frame.image)
                position = index, frame.timestamp, frame.name
                yield Result(
                    frame.image, labels, confidence, *position, 1e3 * (time.monotonic() - started)
                )

    def _stream(
        self, source: FrameSource | Iterable[np.ndarray], size: int, max_wait: float
    ) -> Generator[Result]:
        stop = source.stop if isinstance(source, FrameSource) else lambda: None
        frames = self._numbered(source)
        reader = Pipeline(frames, queue_size=max(4, size), while_stopping=stop)
        groups: deque[tuple[list[Frame], float]] = deque()
        index = 0
        results = self.backend.stream(self._filled_slots(reader, groups, size, max_wait))
        with closing(results), closing(reader):
            for outputs in results:
                group, submitted = groups.popleft()
                infer_ms = 1e3 * (time.monotonic() - submitted)
                images = [frame.image for frame in group]
                for frame, maps in zip(group, self._maps_of(images, outputs), strict=True):
                    yield Result(frame.image, *maps, index, frame.timestamp, frame.name, infer_ms)
                    index += 1

    def _filled_slots(
        self, reader: Pipeline, groups: deque[tuple[list[Frame], float]], size: int, max_wait: float
    ) -> Iterator[InputSlot]:
        """Prepare batches in the backend's own memory; ``groups`` gets the frames of each.

        Only few batch sizes occur, because a new one costs time: ``size`` and the powers of two below.
        """
        waiting: deque[Frame] = deque()
        error: Exception | None = None
        while True:
            if not waiting:
                if error is not None:
                    raise error
                try:
                    waiting.append(next(reader))
                except StopIteration:
                    return
            slot = self.backend.acquire()
            try:
                ends = time.monotonic() + max_wait
                while len(waiting) < size and error is None:
                    try:
                        waiting.append(reader.next_within(max(0.0, ends - time.monotonic())))
                    except (queue.Empty, StopIteration):
                        break
                    except Exception as problem:  # raised after the frames that were read before it
                        error = problem
                ready = len(waiting)
                count = size if ready >= size else 1 << (ready.bit_length() - 1)
                group = [waiting.popleft() for _ in range(count)]
                images = [frame.image for frame in group]
                slot.num_frames = fill_batch(images, self.card, slot.array, **self._form)
            except BaseException:
                slot.release()
                raise
            groups.append((group, time.monotonic()))
            yield slot


def _is_single(frames: object) -> bool:
    """Tell one frame from several; anything else is checked as a frame."""
    if isinstance(frames, np.ndarray):
        return frames.ndim != 4
    return not isinstance(frames, (list, tuple)) or not all(
        isinstance(frame, np.ndarray) for frame in frames
    )


def _like(
    frames: np.ndarray | Sequence[np.ndarray], maps: Sequence[np.ndarray]
) -> np.ndarray | list[np.ndarray]:
    """Give maps the form of the frames: an array for one frame or a batch, a list for a list."""
    if not isinstance(frames, np.ndarray):
        return list(maps)
    return maps[0] if _is_single(frames) else np.stack(maps)
