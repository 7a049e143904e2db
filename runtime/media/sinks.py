"""Where pictures go: one image file, a folder of images, or a video file."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.files import atomic_path
from runtime.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FrameSource

_DEFAULT_FPS = 30.0


class Sink(Protocol):
    """Takes pictures in order; use it with ``with``, so that an interrupted file is not left behind."""

    path: Path
    """What the pictures end in."""

    def write(self, picture: np.ndarray, name: str) -> None:
        """Write one picture: RGB uint8 (H, W, 3), or a map uint8 (H, W)."""
        ...

    def __enter__(self) -> Sink: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_sink(path: Path, source: FrameSource) -> Sink:
    """Choose by the suffix of ``path``: an image file, a video file, or a folder, made when it is missing.

    Raises:
        InvalidInput: A single image for many frames, or a file type that cannot be written.
        OSError: The folder cannot be made or written to.
    """
    for target in (path, _picture_in(path, source.path.stem)):
        if target.exists() and target.samefile(source.path):
            raise InvalidInput(
                f"output {target} is the source itself", hint="name another file or folder"
            )
    if path.is_dir():
        return FolderSink(path)
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        if suffix != ".mp4":
            raise InvalidInput(
                f"video output is .mp4, got {path.name!r}", hint="name the output OUT.mp4"
            )
        _check_folder(path.parent)
        return VideoSink(path, source.fps or _DEFAULT_FPS)
    if suffix in IMAGE_SUFFIXES:
        if source.num_frames != 1:
            raise InvalidInput(
                f"{source.path} has {source.num_frames or 'many'} frames, {path.name!r} is one image",
                hint="name a folder, or a .mp4 file",
            )
        _check_folder(path.parent)
        return ImageSink(path)
    if suffix:
        raise InvalidInput(
            f"cannot tell what {path.name!r} should be, by its suffix {suffix!r}",
            hint="name a .png or .jpg file, a .mp4 file, or a folder",
        )
    path.mkdir(parents=True, exist_ok=True)
    return FolderSink(path)


class ImageSink:
    """One image file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, picture: np.ndarray, name: str) -> None:
        """Write the picture; the name is the sink's own."""
        write_image(self.path, picture)

    def __enter__(self) -> ImageSink:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FolderSink:
    """A PNG for each frame, under the frame's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, picture: np.ndarray, name: str) -> None:
        """Write ``<name>.png``."""
        write_image(_picture_in(self.path, name), picture)

    def __enter__(self) -> FolderSink:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class VideoSink:
    """An MP4 file that appears when the last frame is written; after an error or Ctrl-C there is none.

    The codec halves the colours' resolution: of an odd width or height the last column or row is lost.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._fps = fps
        self._stack = ExitStack()
        self._writer: cv2.VideoWriter | None = None
        self._size_hw: tuple[int, int] | None = None

    def __enter__(self) -> VideoSink:
        self._temporary = self._stack.enter_context(atomic_path(self.path))
        self._stack.callback(self._release)
        return self

    def write(self, picture: np.ndarray, name: str) -> None:
        """Append a frame; all frames have the size of the first."""
        if self._writer is None:
            self._size_hw = (picture.shape[0], picture.shape[1])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(
                str(self._temporary), codec, self._fps, self._size_hw[::-1]
            )
            if not self._writer.isOpened():
                raise InvalidInput(
                    f"OpenCV cannot write {self.path}", hint="write to a folder of images instead"
                )
        if picture.shape[:2] != self._size_hw:
            raise InvalidInput(
                f"frame {name} is {picture.shape[:2]}, the video's first was {self._size_hw}",
                hint="write to a folder of images instead",
            )
        self._writer.write(_bgr(picture))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()


def write_image(path: Path, picture: np.ndarray) -> None:
    """Encode a picture by the suffix of ``path`` and write it, whole or not at all.

    Args:
        path: Image file to make or replace.
        picture: RGB uint8 (H, W, 3), or a map uint8 (H, W).
    """
    is_encoded, data = cv2.imencode(path.suffix, _bgr(picture))
    if not is_encoded:
        raise InvalidInput(f"OpenCV cannot encode {path.suffix} images", hint="use .png or .jpg")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _picture_in(folder: Path, name: str) -> Path:
    return folder / f"{name}.png"


def _bgr(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidInput(f"output folder {folder} does not exist", hint=f"mkdir -p {folder}")
