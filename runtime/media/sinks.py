"""Destinations of images: one image file, a folder of images, or a video file."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.files import atomic_path
from runtime.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FrameSource

_DEFAULT_FPS = 30.0


class Sink(AbstractContextManager["Sink"]):
    """Writes images in order. Use it with ``with``, so that an interrupted file is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """File or folder that is written."""

    @abstractmethod
    def write(self, image: np.ndarray, name: str) -> None:
        """Write one image: RGB uint8 (H, W, 3), or a map uint8 (H, W)."""

    def __exit__(self, *_: Any) -> None:
        """Do nothing: each image was written at once."""


def open_sink(path: Path, source: FrameSource) -> Sink:
    """Choose a sink by the suffix of ``path``: image file, video file, or folder, created if it is missing.

    Args:
        path: File or folder to write.
        source: Source of the frames; it must not be overwritten. A video takes its frame rate.

    Raises:
        InvalidInput: A single image for many frames, or a file type that cannot be written.
        OSError: The folder cannot be created or written to.
    """
    for target in (path, path / f"{source.path.stem}.png"):
        if target.exists() and target.samefile(source.path):
            raise InvalidInput(
                f"output {target} is the source itself", hint="name another file or folder"
            )
    suffix = path.suffix.lower()
    if path.is_dir() or not suffix:
        path.mkdir(parents=True, exist_ok=True)
        return FolderSink(path)
    if suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InvalidInput(
            f"output {path.name!r} has the unknown suffix {suffix!r}",
            hint="name a .png or .jpg file, a .mp4 file, or a folder",
        )
    if suffix in VIDEO_SUFFIXES and suffix != ".mp4":
        raise InvalidInput(f"video output is .mp4, got {path.name!r}", hint="name it OUT.mp4")
    if suffix in IMAGE_SUFFIXES and source.num_frames != 1:
        raise InvalidInput(
            f"{source.path} has {source.num_frames or 'many'} frames, {path.name!r} is one image",
            hint="name a folder, or a .mp4 file",
        )
    if not path.parent.is_dir():
        raise InvalidInput(
            f"output folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}"
        )
    return ImageSink(path) if suffix in IMAGE_SUFFIXES else VideoSink(path, source.fps)


class ImageSink(Sink):
    """One image file."""

    def write(self, image: np.ndarray, name: str) -> None:
        """Write the image; ``name`` is ignored."""
        write_image(self.path, image)


class FolderSink(Sink):
    """A folder with one PNG file per frame, named after the frame."""

    def write(self, image: np.ndarray, name: str) -> None:
        """Write ``<name>.png``."""
        write_image(self.path / f"{name}.png", image)


class VideoSink(Sink):
    """An MP4 file that appears when the last frame is written; after an error or Ctrl-C there is none.

    The codec halves the resolution of the colours: the last column or row of an odd width or height is lost.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        super().__init__(path)
        self._fps = fps or _DEFAULT_FPS
        self._resources = ExitStack()
        self._writer: cv2.VideoWriter | None = None
        self._size_hw = (0, 0)

    def __enter__(self) -> VideoSink:
        self._temporary = self._resources.enter_context(atomic_path(self.path))
        return self

    def write(self, image: np.ndarray, name: str) -> None:
        """Append a frame; all frames must have the size of the first."""
        if self._writer is None:
            self._size_hw = (image.shape[0], image.shape[1])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(
                str(self._temporary), codec, self._fps, self._size_hw[::-1]
            )
            self._resources.callback(self._writer.release)
            if not self._writer.isOpened():
                raise InvalidInput(
                    f"OpenCV cannot write {self.path}", hint="write to a folder of images instead"
                )
        if image.shape[:2] != self._size_hw:
            raise InvalidInput(
                f"frame {name} is {image.shape[:2]}, the video's first was {self._size_hw}",
                hint="write to a folder of images instead",
            )
        self._writer.write(_bgr(image))

    def __exit__(self, *error: Any) -> None:
        self._resources.__exit__(*error)


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
