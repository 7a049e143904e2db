"""Segment a whole source with overlapping decoding, inference and writing; unreadable frames are listed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.artefact.advice import form_advice, quantization_advice
from runtime.console import is_terminal
from runtime.errors import InvalidInput
from runtime.media.overlay import colors_from_labels
from runtime.media.sinks import open_sink
from runtime.media.sources import FrameSource, open_source
from runtime.pipeline import Pipeline
from runtime.segmenter import Result, Segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentReport:
    """Result of ``segment_source``."""

    output: Path
    """File or folder that was written."""
    num_frames: int
    """Frames segmented."""
    seconds: float
    """Wall time, including decoding and writing, without opening the model."""
    backend: str
    """Backend, precision and device."""
    skipped: tuple[str, ...]
    """One line for each frame that could not be read."""
    warnings: tuple[str, ...]
    """Non-fatal warnings."""

    def as_text(self) -> str:
        """Summarize in a few lines."""
        rate = self.num_frames / self.seconds if self.seconds else 0.0
        lines = [f"skipped: {reason}" for reason in self.skipped]
        lines.append(
            f"{_frames(self.num_frames)} in {self.seconds:.1f} s, {rate:.1f} frames/s (including decoding "
            f"and writing) on {self.backend}"
        )
        if self.skipped:
            lines.append(f"{_frames(len(self.skipped))} could not be read")
        lines.append(f"wrote {self.output}")
        return "\n".join(lines)


def segment_source(
    source: FrameSource | Path | str,
    model_path: Path,
    output_path: Path,
    *,
    draw: Literal["overlay", "colors", "labels"] = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
    backend: str | None = None,
    precision: str | None = None,
    allow_mismatch: bool = False,
) -> SegmentReport:
    """Segment every frame of a source.

    Args:
        source: An open source, or one for ``open_source``.
        model_path: Exported model.
        output_path: Output for ``open_sink``.
        draw: Overlay on the frame, plain class colours, or class indices (lossless files only).
        alpha: Weight of the overlay's colours, 0 to 1.
        legend: True to write the class names on the overlay.
        backend: As for ``open_backend``.
        precision: As for ``open_backend``.
        allow_mismatch: As for ``open_backend``.

    Raises:
        InvalidInput: Unusable source or output, or no readable frame.
        ModelFileError: Unusable model.
        BackendUnavailable: No installed backend can run it.
    """
    if draw == "labels" and output_path.suffix.lower() in (".mp4", ".jpg", ".jpeg"):
        raise InvalidInput(
            f"class indices would not survive {output_path.suffix} compression",
            hint="write them to .png or to a folder",
        )
    if not isinstance(source, FrameSource):
        source = open_source(source)
    with Segmenter.open(
        model_path, backend=backend, precision=precision, allow_mismatch=allow_mismatch
    ) as segmenter:
        sink = open_sink(output_path, source)

        def paint(result: Result) -> tuple[str, np.ndarray]:
            image = result.labels
            if draw == "colors":
                image = colors_from_labels(image, segmenter.card)
            elif draw == "overlay":
                image = segmenter.overlay(result.frame, image, alpha=alpha, legend=legend)
            return result.name, image

        started = time.perf_counter()
        count = 0
        painted = Pipeline(segmenter.stream(source), paint, while_stopping=source.stop)
        with _one_opencv_thread(), sink as write, _progress() as progress, closing(painted):
            label = Path(source.name).name
            for name, image in progress.track(painted, source.num_frames, description=label):
                write(image, name)
                count += 1
            if count == 0:
                raise InvalidInput(
                    f"no frame of {source.name} could be read: {'; '.join(source.skipped[:3])}"
                )
        running = segmenter.backend
        return SegmentReport(
            output=output_path,
            num_frames=count,
            seconds=time.perf_counter() - started,
            backend=f"{running.name} {running.precision}, {running.device}",
            skipped=tuple(source.skipped),
            warnings=tuple(_warnings(source, count, segmenter)),
        )


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV from starting a thread for each core: the stages use them all."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _warnings(source: FrameSource, count: int, segmenter: Segmenter) -> Iterator[str]:
    for advise in (form_advice, quantization_advice):
        if advice := advise(segmenter.card, segmenter.backend.name):
            yield advice
    yield from segmenter.backend.notes
    if source.num_frames and count + len(source.skipped) < source.num_frames:
        yield (
            f"{source.name} ended after {_frames(count)}, its header promises {source.num_frames}: "
            "the file may be truncated"
        )


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


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
