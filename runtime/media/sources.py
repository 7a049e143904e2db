"""Where frames come from: an image, a folder of images, or a video file."""

from __future__ import annotations

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
    """File name without suffix (with it where two files differ in nothing else), or a video's name and
    frame number."""


class FrameSource(Protocol):
    """Frames in order, once through for each iteration; what cannot be read is skipped and remembered."""

    path: Path
    """What was opened."""
    num_frames: int | None
    """How many frames to expect, ``None`` when unknown; a video's header may promise too many."""
    fps: float | None
    """Frames a second of a video, ``None`` for images."""
    skipped: list[str]
    """One line for each frame that could not be read in the last iteration."""

    def __iter__(self) -> Iterator[Frame]: ...


def open_source(path: Path | str) -> FrameSource:
    """Open an image, a folder of images, or a video.

    Raises:
        InvalidInput: Nothing there, a folder without images, or a file that is neither image nor video.
    """
    path = Path(path)
    if path.is_dir():
        return ImageSource(path, _images_in(path))
    if not path.is_file():
        raise InvalidInput(
            f"source {str(path)!r} does not exist", hint="give an image, a folder or a video"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path, [path])
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoSource(path)
    raise InvalidInput(
        f"{path} is neither an image nor a video, by its suffix {path.suffix!r}",
        hint=f"images: {_listed(IMAGE_SUFFIXES)}; videos: {_listed(VIDEO_SUFFIXES)}",
    )


class ImageSource:
    """Image files, in the order given."""

    fps: float | None = None

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self.num_frames: int | None = len(files)
        self.skipped: list[str] = []
        self._files = files
        stems = [file.stem for file in files]
        self._names_are_stems = len(set(stems)) == len(stems)

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        for file in self._files:
            try:
                yield Frame(read_image(file), file.stem if self._names_are_stems else file.name)
            except InvalidInput as error:
                self.skipped.append(str(error))


class VideoSource:
    """A video file, decoded frame by frame."""

    def __init__(self, path: Path) -> None:
        """Open the file once to learn its size and rate.

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
        index = 0
        try:
            while True:
                is_read, image = capture.read()
                if not is_read:
                    break
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), f"{self.path.stem}_{index:06d}")
                index += 1
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


def _images_in(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if not files:
        raise InvalidInput(
            f"folder {folder} holds no images",
            hint=f"images are files ending in {_listed(IMAGE_SUFFIXES)}",
        )
    return files


def _listed(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffixes))
