"""``Selection``: which frames of a source are used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from runtime.errors import InvalidInput
from runtime.media.frame_source import Frame, FrameSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """A part of the frames of a source, in order."""

    every: int = 1
    """Use one frame of this many."""
    duration: float = math.inf
    """Seconds from the first frame on."""
    max_frames: int | None = None
    """Frames at most; ``None`` for all."""
    shard: tuple[int, int] = (1, 1)
    """Part of several, from 1, and number of parts, which take turns: (2, 4) uses frames 1, 5, 9, ..."""

    def of(self, source: FrameSource, is_done: Callable[[str], bool] | None = None) -> FrameSource:
        """Get a source with these frames only; image files that are left out are not read.

        Args:
            source: The whole source.
            is_done: Tells by its name that a frame is left out and does not count for ``max_frames``.

        Raises:
            InvalidInput: A duration of image files, which have no times.
        """
        if self == Selection() and is_done is None:
            return source
        part, parts = self.shard
        step, offset = self.every * parts, self.every * (part - 1)
        if source.files:
            if self.duration != math.inf:
                raise InvalidInput(
                    f"duration has no effect on the images of {source.name}",
                    hint="omit --duration, or use --max-frames",
                )
            names = list(source.files)[offset::step]
            names = [name for name in names if not (is_done and is_done(name))]
            names = names[: self.max_frames]
            files = {name: source.files[name] for name in names}
            return replace(source, files=files, num_frames=len(files))

        def decode(own: FrameSource) -> Iterator[Frame]:
            first, taken = 0.0, 0
            for index, frame in enumerate(source.decode(own)):
                first = first if index else frame.timestamp
                if frame.timestamp - first >= self.duration:
                    return
                if index % step != offset or (is_done and is_done(frame.name)):
                    continue
                yield frame
                taken += 1
                if taken == self.max_frames:
                    return

        total, fps = source.num_frames, source.fps
        if total is not None:
            length = math.ceil(self.duration * fps) if fps and self.duration != math.inf else total
            total = len(range(min(total, length))[offset::step][: self.max_frames])
        return replace(source, decode=decode, num_frames=total, fps=fps and fps / step)


def shard_from_text(text: str) -> tuple[int, int]:
    """Parse ``1/4``, the first of four parts.

    Raises:
        InvalidInput: Another format, or not 1 <= part <= parts.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InvalidInput(f"shard {text!r} is not PART/PARTS", hint="for example --shard 1/4")
    return int(match[1]), int(match[2])
