"""Segment a whole source: decode, infer and write overlap, order is kept, unreadable frames are counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.artefact.advice import form_advice, quantization_advice
from runtime.console import is_terminal
from runtime.errors import InvalidInput
from runtime.media.overlay import colors_from_labels
from runtime.media.pipeline import Pipeline
from runtime.media.sinks import open_sink
from runtime.media.sources import Frame, FrameSource, open_source
from runtime.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentReport:
    """What ``segment_source`` did."""

    output: Path
    """What was written."""
    num_frames: int
    """Frames segmented."""
    seconds: float
    """Wall time, decoding and writing included, opening the model not."""
    backend: str
    """Backend, precision and device."""
    skipped: tuple[str, ...]
    """One line for each frame that could not be read."""
    warnings: tuple[str, ...]
    """What went another way than one may think."""

    def as_text(self) -> str:
        """Sum up in a few lines."""
        rate = self.num_frames / self.seconds if self.seconds else 0.0
        lines = [f"skipped: {reason}" for reason in self.skipped]
        lines.append(
            f"{_frames(self.num_frames)} in {self.seconds:.1f} s, {rate:.1f} frames/s (decoding and "
            f"writing included) on {self.backend}"
        )
        if self.skipped:
            lines.append(f"{_frames(len(self.skipped))} could not be read")
        lines.append(f"wrote {self.output}")
        return "\n".join(lines)


def segment_source(
    source_path: Path,
    model_path: Path,
    output_path: Path,
    *,
    draw: str = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
    backend: str | None = None,
    precision: str | None = None,
) -> SegmentReport:
    """Segment every frame of an image, folder or video.

    Args:
        source_path: What ``open_source`` opens.
        model_path: Exported model.
        output_path: What ``open_sink`` opens.
        draw: ``overlay``, ``colors`` or ``labels`` (class indices, lossless files only).
        alpha: Weight of the overlay's colours.
        legend: Whether the overlay names its classes.
        backend: As for ``open_backend``.
        precision: As for ``open_backend``.

    Raises:
        InvalidInput: Source or output unusable, or not one readable frame.
        ModelFileError: Model unusable.
        BackendUnavailable: Nothing here can run it.
    """
    if draw == "labels" and output_path.suffix.lower() in (".mp4", ".jpg", ".jpeg"):
        raise InvalidInput(
            f"class indices would not survive {output_path.suffix} compression",
            hint="write them to .png or to a folder",
        )
    source = open_source(source_path)
    with Segmenter.open(model_path, backend=backend, precision=precision) as segmenter:
        sink = open_sink(output_path, source)

        def infer(frame: Frame) -> tuple[Frame, np.ndarray]:
            return frame, segmenter.segment(frame.image)

        def paint(item: tuple[Frame, np.ndarray]) -> tuple[str, np.ndarray]:
            frame, labels = item
            if draw == "labels":
                return frame.name, labels
            if draw == "colors":
                return frame.name, colors_from_labels(labels, segmenter.card)
            return frame.name, segmenter.overlay(frame.image, labels, alpha=alpha, legend=legend)

        started = time.perf_counter()
        count = 0
        with sink, _progress() as progress:
            task = progress.add_task(source_path.name, total=source.num_frames)
            for name, picture in Pipeline(source, infer, paint):
                sink.write(picture, name)
                count += 1
                progress.advance(task)
            if count == 0:
                raise InvalidInput(
                    f"no frame of {source_path} could be read: {'; '.join(source.skipped[:3])}"
                )
        seconds = time.perf_counter() - started
        running = segmenter.backend
    return SegmentReport(
        output=output_path,
        num_frames=count,
        seconds=seconds,
        backend=f"{running.name} {running.precision}, {running.device}",
        skipped=tuple(source.skipped),
        warnings=tuple(_warnings(source, count, segmenter)),
    )


def _warnings(source: FrameSource, count: int, segmenter: Segmenter) -> Iterator[str]:
    for advise in (form_advice, quantization_advice):
        if advice := advise(segmenter.card, segmenter.backend.name):
            yield advice
    if source.num_frames and count + len(source.skipped) < source.num_frames:
        yield (
            f"{source.path} ended after {_frames(count)}, its header promises {source.num_frames}: "
            "the file may be cut short"
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
