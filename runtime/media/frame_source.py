"""``FrameSource``, which gives frames in order and counts what is missing, and the decoders below it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame."""

    image: np.ndarray
    """RGB, uint8 (H, W, 3), fresh."""
    name: str
    """Path relative to the folder, without suffix (with it if names would repeat); or source and frame
    number."""
    timestamp: float = 0.0
    """Position in the video, or time since the first frame of a camera, stream or pipe; seconds. 0 for an
    image."""


class Gap(NamedTuple):
    """A time without frames that ended with a new connection."""

    start: float
    """Timestamp of the last frame before it, seconds."""
    seconds: float
    """Time until the next frame."""
    reason: str
    """Last error."""


@dataclass(slots=True)
class FrameSource:
    """Frames in order; each iteration starts again. Unreadable frames are skipped and listed.

    Files never drop a frame. A live source drops the frames that it could not hand over before a newer one
    arrived. The counters are those of the last iteration.
    """

    name: str
    """Source as the user gave it, without user name, password and query."""
    decode: Callable[[FrameSource], Iterator[Frame]]
    """Decodes the frames, counts in the fields below, and ends soon after ``stopping`` is set."""
    path: Path | None = None
    """File or folder that was opened; ``None`` for a camera, a network stream and stdin."""
    num_frames: int | None = None
    """Expected number of frames, ``None`` if unknown; the header of a video may be wrong."""
    fps: float | None = None
    """Frames per second of a video, ``None`` for images and as long as it is unknown."""
    is_live: bool = False
    """True for a camera or a network stream: its newest frame wins."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Image file of each frame name, in order; empty for other sources."""
    skipped: list[str] = field(default_factory=list)
    """One line for each frame that could not be read."""
    drops: int = 0
    """Frames of a live source that were replaced by a newer one, or arrived damaged."""
    gaps: list[Gap] = field(default_factory=list)
    """Times without frames of a live source that ended with a new connection."""
    started: float = 0.0
    """``time.monotonic()`` at timestamp 0 of a live source."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set by ``stop``."""

    def __iter__(self) -> Iterator[Frame]:
        self.skipped, self.drops, self.gaps = [], 0, []
        self.stopping.clear()
        return self.decode(self)

    def stop(self) -> None:
        """End the iteration that is under way, even one that waits for a frame; from any thread."""
        self.stopping.set()

    def age(self, timestamp: float) -> float:
        """Get the seconds since the frame with this timestamp arrived from a live source."""
        return time.monotonic() - self.started - timestamp


class DecoderError(Exception):
    """A source cannot be opened, or stopped answering; the message is the reason alone."""


class Decoded(NamedTuple):
    """One frame as a decoder gives it."""

    image: Callable[[], np.ndarray]
    """Gets RGB uint8 (H, W, 3), fresh, in any thread; raises ``InvalidInput`` for a damaged frame."""
    seconds: float
    """Position in the video or stream."""


class Decoder(Protocol):
    """An open video, stream or camera; iterating it once gives its frames, or raises ``DecoderError``."""

    num_frames: int | None
    """Number of frames by the header."""
    fps: float | None
    """Nominal frames per second."""
    is_finite: bool
    """True for a file, also one on a server; False for a live stream."""
    is_paced: bool
    """False if live frames arrive in bursts and have to be shown at their own times (HLS)."""
    damaged: list[str]
    """One line for each part that could not be decoded."""

    def __iter__(self) -> Iterator[Decoded]: ...
    def seek(self, seconds: float) -> None:
        """Move to a key frame at or before a position, if the file allows it; before the iteration."""

    def close(self) -> None:
        """Free the source; not while another thread reads it."""
