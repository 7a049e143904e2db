"""Frames for measurements: decoded from a source, or generated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np

from benchmarks.errors import BenchmarkError
from esnet.data.scenes import street_scene
from runtime.media.frames import resize_frame
from runtime.media.sources import open_source

NUM_FRAMES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSet:
    """Decoded frames, used in a cycle."""

    frames: tuple[np.ndarray, ...]
    """RGB, uint8 (H, W, 3) each."""
    description: str
    """Origin, number and size, for the report."""
    source: Path | None = None
    """Image, folder or video; ``None`` if the frames are generated."""

    def groups(self, size: int) -> list[list[np.ndarray]]:
        """Split the frames into groups of ``size``; a frame comes twice only if there are too few."""
        images = cycle(self.frames)
        return [list(islice(images, size)) for _ in range(max(1, len(self.frames) // size))]

    def decode_again(self) -> Iterator[np.ndarray]:
        """Decode the source, or JPEGs of the generated frames, endlessly: RGB, uint8 (H, W, 3)."""
        if self.source is not None:
            opened = open_source(self.source)
            while True:
                yield from (frame.image for frame in islice(opened, NUM_FRAMES))
        jpegs = [cv2.imencode(".jpg", frame[..., ::-1])[1] for frame in self.frames]
        for jpeg in cycle(jpegs):
            image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
            assert image is not None  # it was encoded above
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def load_frames(source: Path | None, size_hw: tuple[int, int] | None) -> FrameSet:
    """Decode the first 16 frames of an image, folder or video; ``None`` generates street scenes.

    Frames are resized to ``size_hw``; ``None`` keeps their size.

    Raises:
        InvalidInput: The source cannot be opened.
        BenchmarkError: No frame can be read.
    """
    if source is None:
        size_hw = size_hw or (512, 1024)
        frames = tuple(street_scene(size_hw, seed=seed).image for seed in range(NUM_FRAMES))
        text = f"{NUM_FRAMES} generated street scenes, {_sizes(frames)}"
        return FrameSet(frames=frames, description=text)
    opened = open_source(source)
    frames = tuple(frame.image for frame in islice(opened, NUM_FRAMES))
    if not frames:
        raise BenchmarkError(f"no frame of {source} could be read: {'; '.join(opened.skipped[:3])}")
    native = _sizes(frames)
    if size_hw is not None:
        frames = tuple(resize_frame(frame, size_hw) for frame in frames)
    resized = "" if _sizes(frames) == native else f", resized from {native} before timing"
    text = f"{len(frames)} frames of {source}, {_sizes(frames)}{resized}"
    return FrameSet(frames=frames, description=text, source=source)


def _sizes(frames: tuple[np.ndarray, ...]) -> str:
    sizes = sorted({frame.shape[:2] for frame in frames})
    return ", ".join(f"{height}x{width}" for height, width in sizes)
