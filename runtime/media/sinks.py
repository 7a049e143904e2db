"""Destinations of images: one image file, a folder of images, or a video file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.files import atomic_path, require_outputs
from runtime.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FrameSource

_DEFAULT_FPS = 30.0

Sink = AbstractContextManager[Callable[[np.ndarray, str], None]]
"""Yields ``write(image, name)``, which takes RGB uint8 (H, W, 3) or a map uint8 (H, W), in order."""


def open_sink(path: Path, source: FrameSource) -> Sink:
    """Choose a sink by the suffix of ``path``: image file, video file, or folder, created if it is missing.

    Args:
        path: File or folder to write.
        source: Source of the frames; it must not be overwritten. A video takes its frame rate.

    Returns:
        A sink for ``with``. A folder gets one PNG file per frame, named after the frame.

    Raises:
        InvalidInput: A single image for many frames, or a file type that cannot be written.
        OSError: The folder cannot be created or written to.
    """
    outputs = [(path / f"{name}.png", file) for name, file in source.files.items()]
    for target, file in [(path, source.path), *outputs]:
        if file is not None and target.exists() and target.samefile(file):
            raise InvalidInput(
                f"output {target} is the source itself", hint="name another file or folder"
            )
    suffix = path.suffix.lower()
    if path.is_dir() or not suffix:
        path.mkdir(parents=True, exist_ok=True)

        def write(image: np.ndarray, name: str) -> None:
            target = path / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(target, image)

        return nullcontext(write)
    if suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InvalidInput(
            f"output {path.name!r} has the unknown suffix {suffix!r}",
            hint="name a .png or .jpg file, a .mp4 file, or a folder",
        )
    if suffix in VIDEO_SUFFIXES and suffix != ".mp4":
        raise InvalidInput(f"video output is .mp4, got {path.name!r}", hint="name it OUT.mp4")
    if suffix in IMAGE_SUFFIXES and source.num_frames != 1:
        raise InvalidInput(
            f"{source.name} has {source.num_frames or 'many'} frames, {path.name!r} is one image",
            hint="name a folder, or a .mp4 file",
        )
    require_outputs(path)
    if suffix in IMAGE_SUFFIXES:
        return nullcontext(lambda image, name: write_image(path, image))
    return _open_video(path, source.fps or _DEFAULT_FPS)


@contextmanager
def _open_video(path: Path, fps: float) -> Iterator[Callable[[np.ndarray, str], None]]:
    """Write an MP4 file that appears when the block ends; after an error or Ctrl-C there is none.

    The codec halves the resolution of the colours: the last column or row of an odd width or height is lost.
    """
    writer = cv2.VideoWriter()
    size_hw: tuple[int, ...] = ()

    def write(image: np.ndarray, name: str) -> None:
        nonlocal size_hw
        if not size_hw:
            size_hw = image.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            if not writer.open(str(temporary), codec, fps, size_hw[::-1]):
                raise InvalidInput(
                    f"OpenCV cannot write {path}", hint="write to a folder of images instead"
                )
        if image.shape[:2] != size_hw:
            raise InvalidInput(
                f"frame {name} is {image.shape[:2]}, the video's first was {size_hw}",
                hint="write to a folder of images instead",
            )
        writer.write(_bgr(image))

    with atomic_path(path) as temporary:
        try:
            yield write
        finally:
            writer.release()


def write_image(path: Path, image: np.ndarray) -> None:
    """Encode an image by the suffix of ``path`` and write it atomically.

    Args:
        path: Image file to create or replace.
        image: RGB uint8 (H, W, 3), or a map uint8 (H, W).

    Raises:
        InvalidInput: OpenCV cannot encode this file type.
        OSError: The file cannot be written.
    """
    is_encoded, data = cv2.imencode(path.suffix, _bgr(image))
    if not is_encoded:
        raise InvalidInput(f"OpenCV cannot encode {path.suffix} images", hint="use .png or .jpg")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _bgr(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
