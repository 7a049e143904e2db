"""The frames that are timed: real ones, decoded beforehand, or generated ones, always saying which."""

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
from runtime.media.sources import FrameSource, open_source

NUM_FRAMES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSet:
    """Decoded frames to cycle through."""

    frames: tuple[np.ndarray, ...]
    """RGB, uint8 (H, W, 3)."""
    description: str
    """What they are, for the report."""
    source: Path | None = None
    """Where they come from; ``None``: they were generated."""


class FrameDecoder:
    """Decodes the frames of a set again, round and round: of its source, or of JPEGs of generated ones."""

    def __init__(self, frames: FrameSet) -> None:
        """Open the source, or encode the frames."""
        if frames.source is None:
            self.description = "JPEGs of the generated frames, in memory"
            encoded = [_as_jpeg(frame) for frame in frames.frames]
            self._rounds: Iterator[np.ndarray] = map(_from_jpeg, cycle(encoded))
        else:
            self.description = str(frames.source)
            self._rounds = _endless(open_source(frames.source))

    def next(self) -> np.ndarray:
        """Decode one frame: RGB, uint8 (H, W, 3), in its own size."""
        return next(self._rounds)


def _endless(source: FrameSource) -> Iterator[np.ndarray]:
    while True:
        for frame in islice(source, NUM_FRAMES):
            yield frame.image


def _as_jpeg(image: np.ndarray) -> np.ndarray:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return encoded


def _from_jpeg(encoded: np.ndarray) -> np.ndarray:
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert image is not None  # it was encoded here
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def load_frames(source: Path | None, size_hw: tuple[int, int] | None) -> FrameSet:
    """Decode the first sixteen frames of a source, or generate as many.

    Args:
        source: Image, folder or video; ``None`` generates street scenes.
        size_hw: Size they are brought to before anything is timed; ``None`` keeps theirs.

    Raises:
        InvalidInput: The source cannot be opened.
        BenchmarkError: None of its frames can be read, or their sizes differ and no size was given.
    """
    if source is None:
        size_hw = size_hw or (512, 1024)
        scenes = tuple(street_scene(size_hw, seed=seed).image for seed in range(NUM_FRAMES))
        return FrameSet(
            frames=scenes, description=f"{NUM_FRAMES} generated street scenes, {_size(scenes)}"
        )
    opened = open_source(source)
    frames = tuple(frame.image for frame in islice(opened, NUM_FRAMES))
    if not frames:
        raise BenchmarkError(f"no frame of {source} could be read: {'; '.join(opened.skipped[:3])}")
    native = _size(frames)
    if size_hw is not None:
        frames = tuple(resize_frame(frame, size_hw) for frame in frames)
    note = f", resized from {native} before the clock starts" if _size(frames) != native else ""
    return FrameSet(
        frames=frames,
        description=f"{len(frames)} frames of {source}, {_size(frames)}{note}",
        source=source,
    )


def _size(frames: tuple[np.ndarray, ...]) -> str:
    sizes = sorted({frame.shape[:2] for frame in frames})
    return ", ".join(f"{height}x{width}" for height, width in sizes)
