"""Sources of frames: an image, a folder of images, or a video file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from runtime.errors import InvalidInput

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame."""

    image: np.ndarray
    """RGB, uint8 (H, W, 3), fresh."""
    name: str
    """File name without suffix (with it if names would repeat), or video name and frame number."""


class FrameSource(Protocol):
    """Frames in order; each iteration starts again. Unreadable frames are skipped and listed."""

    path: Path
    """File or folder that was opened."""
    num_frames: int | None
    """Expected number of frames, ``None`` if unknown; the header of a video may be wrong."""
    fps: float | None
    """Frames per second of a video, ``None`` for images."""
    skipped: list[str]
    """One line for each frame that could not be read in the last iteration."""

    def __iter__(self) -> Iterator[Frame]: ...


def open_source(path: Path | str) -> FrameSource:
    """Open an image, a folder of images, or a video.

    Raises:
        InvalidInput: No such path, a folder without images, or a file that is neither image nor video.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        files = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        return ImageSource(path, sorted(file for file in files if file.is_file()))
    if not path.is_file():
        raise InvalidInput(
            f"source {str(path)!r} does not exist", hint="give an image, a folder or a video"
        )
    if suffix in IMAGE_SUFFIXES:
        return ImageSource(path, [path])
    if suffix in VIDEO_SUFFIXES:
        return VideoSource(path)
    raise InvalidInput(
        f"{path} is neither an image nor a video, by its suffix {path.suffix!r}",
        hint=f"images: {_listed(IMAGE_SUFFIXES)}; videos: {_listed(VIDEO_SUFFIXES)}",
    )


class ImageSource:
    """Image files, in the order given."""

    fps: float | None = None

    def __init__(self, path: Path, files: list[Path]) -> None:
        if not files:
            raise InvalidInput(
                f"folder {path} holds no images",
                hint=f"images are files ending in {_listed(IMAGE_SUFFIXES)}",
            )
        self.path = path
        self.num_frames: int | None = len(files)
        self.skipped: list[str] = []
        self._files = files
        self._stems_are_unique = len({file.stem for file in files}) == len(files)

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        for file in self._files:
            try:
                yield Frame(read_image(file), file.stem if self._stems_are_unique else file.name)
            except InvalidInput as error:
                self.skipped.append(str(error))


class VideoSource:
    """A video file, decoded frame by frame."""

    def __init__(self, path: Path) -> None:
        """Open the file once to read its length and frame rate.

        Raises:
            InvalidInput: OpenCV cannot decode it.
        """
        self.path = path
        self.skipped: list[str] = []
        capture = self._open()
        count, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        self.num_frames = int(count) if count > 0 else None
        self.fps: float | None = float(fps) if fps > 0 else None

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        capture = self._open()
        try:
            for index in itertools.count():
                is_read, image = capture.read()
                if not is_read:
                    return
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), f"{self.path.stem}_{index:06d}")
        finally:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            capture.release()
            raise InvalidInput(
                f"{self.path} cannot be decoded as a video",
                hint="convert it, for example to H.264 in .mp4",
            )
        return capture


def read_image(path: Path) -> np.ndarray:
    """Decode an image file to RGB, uint8 (H, W, 3).

    Raises:
        InvalidInput: Not a readable image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InvalidInput(f"{path} cannot be read as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _listed(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffixes))
