"""MP4 files that grow under another name, are read back, and only then get their own."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.media.sources import FrameSource
from runtime.output.images import bgr_from_rgb
from runtime.output.marks import MARK

_DEFAULT_FPS = 30.0


class _Encoder(Protocol):
    def write(self, image: np.ndarray, seconds: float) -> None: ...
    def close(self) -> None: ...


def partial_path(path: Path) -> Path:
    """Get the name of a video while it is written, and after a crash."""
    return path.parent / f"{path.stem}.partial.mp4"


def has_h264() -> bool:
    """Check that PyAV is installed with an H.264 encoder."""
    if importlib.util.find_spec("av") is None:
        return False
    from av import codecs_available

    return "libx264" in codecs_available


@contextmanager
def video_sink(
    path: Path, source: FrameSource
) -> Iterator[Callable[[np.ndarray, str, float], None]]:
    """Write an MP4 file: H.264 by PyAV, or MPEG-4 by OpenCV, which browsers do not play.

    The file gets its name when the block ends and all its frames have been found in it. After an error, what
    plays of it stays as ``partial_path``.

    Frames of a video or a live source keep their times, if PyAV writes them; without times, they follow at a
    constant rate. An odd last column or row is lost. Frames of a live source are resized to the first.

    Raises:
        InvalidInput: A frame of another size, or one that the encoder refuses.
        OSError: The file cannot be written, or frames are missing in it.
    """
    partial = partial_path(path)
    partial.unlink(missing_ok=True)
    fps = source.fps or _DEFAULT_FPS
    is_timed = source.is_live or source.fps is not None
    encoder: _Encoder | None = None
    size_hw: tuple[int, ...] = ()
    count, first, seconds = 0, 0.0, 0.0

    def write(image: np.ndarray, name: str, timestamp: float) -> None:
        nonlocal encoder, size_hw, count, first, seconds
        if encoder is None:
            size_hw, first = image.shape[:2], timestamp
            even_hw = (size_hw[0] // 2 * 2, size_hw[1] // 2 * 2)
            encoder = _open_encoder(partial, even_hw, fps)
        if image.shape[:2] != size_hw:
            if not source.is_live:
                raise InvalidInput(
                    f"frame {name} is {image.shape[:2]}, the video's first was {size_hw}",
                    hint="write to a folder of images instead",
                )
            image = cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA)
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        image = image[: size_hw[0] // 2 * 2, : size_hw[1] // 2 * 2]
        elapsed = timestamp - first if is_timed else 0.0
        if count:
            seconds = elapsed if elapsed > seconds else seconds + 1 / fps
        encoder.write(image, seconds)
        count += 1

    try:
        yield write
        if encoder is not None:
            encoder.close()
            found = _count_frames(partial)
            if found != count:
                reason = f"only {found} of {count} frames have reached the file"
                raise OSError(errno.EIO, reason, str(path))
            with partial.open("rb") as file:
                os.fsync(file)
            partial.replace(path)
    except BaseException:
        if encoder is not None:
            with suppress(OSError):
                encoder.close()
        if not _count_frames(partial):
            partial.unlink(missing_ok=True)
        raise


def _open_encoder(path: Path, size_hw: tuple[int, int], fps: float) -> _Encoder:
    if not has_h264():
        return _OpenCvEncoder(path, size_hw, fps)
    from runtime.output.h264 import H264Encoder

    return H264Encoder(path, size_hw, fps)


def _count_frames(path: Path) -> int:
    """Count the frames that a video file holds, without decoding them."""
    if importlib.util.find_spec("av") is not None:
        from runtime.output.h264 import count_frames

        return count_frames(path)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


class _OpenCvEncoder:
    """Writes MPEG-4 at a constant rate."""

    def __init__(self, path: Path, size_hw: tuple[int, int], fps: float) -> None:
        self._path = path
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter()
        if not self._writer.open(str(path), codec, fps, size_hw[::-1]):
            raise InvalidInput(
                f"OpenCV cannot write {path}", hint="write to a folder of images instead"
            )

    def write(self, image: np.ndarray, seconds: float) -> None:
        self._writer.write(bgr_from_rgb(image))

    def close(self) -> None:
        if self._writer.isOpened():
            self._writer.release()
            with self._path.open("ab") as file:  # a box that players skip
                file.write((8 + len(MARK)).to_bytes(4, "big") + b"free" + MARK)
