"""Sources of frames: an image, a folder of images, or a video file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    timestamp: float = 0.0
    """Position in the video, seconds; 0 for an image."""


@dataclass(slots=True)
class FrameSource:
    """Frames in order; each iteration starts again. Unreadable frames are skipped and listed."""

    path: Path
    """File or folder that was opened."""
    num_frames: int | None
    """Expected number of frames, ``None`` if unknown; the header of a video may be wrong."""
    fps: float | None
    """Frames per second of a video, ``None`` for images."""
    _decode: Callable[[list[str]], Iterator[Frame]]
    """Decodes the frames; extends the list by one line for each that cannot be read."""
    skipped: list[str] = field(default_factory=list)
    """One line for each frame that could not be read in the last iteration."""

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        return self._decode(self.skipped)


def open_source(path: Path | str) -> FrameSource:
    """Open an image, a folder of images, or a video.

    Raises:
        InvalidInput: No such path, a folder without images, or a file that is neither image nor video.

    Example:
        >>> [(frame.name, frame.image.shape) for frame in open_source("photos")]
        [('a', (64, 128, 3)), ('b', (64, 128, 3))]
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        files = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        return _image_source(path, sorted(file for file in files if file.is_file()))
    if not path.is_file():
        raise InvalidInput(
            f"source {str(path)!r} does not exist", hint="give an image, a folder or a video"
        )
    if suffix in IMAGE_SUFFIXES:
        return _image_source(path, [path])
    if suffix in VIDEO_SUFFIXES:
        return _video_source(path)
    raise InvalidInput(
        f"{path} is neither an image nor a video, by its suffix {path.suffix!r}",
        hint=f"images: {_listed(IMAGE_SUFFIXES)}; videos: {_listed(VIDEO_SUFFIXES)}",
    )


def _image_source(path: Path, files: list[Path]) -> FrameSource:
    """Make a source of image files, in the order given."""
    if not files:
        raise InvalidInput(
            f"folder {path} holds no images",
            hint=f"images are files ending in {_listed(IMAGE_SUFFIXES)}",
        )
    stems_are_unique = len({file.stem for file in files}) == len(files)

    def decode(skipped: list[str]) -> Iterator[Frame]:
        for file in files:
            try:
                yield Frame(read_image(file), file.stem if stems_are_unique else file.name)
            except InvalidInput as error:
                skipped.append(str(error))

    return FrameSource(path, len(files), None, decode)


def _video_source(path: Path) -> FrameSource:
    """Make a source of a video file; the file is opened to read its length and frame rate."""

    def decode(_: list[str]) -> Iterator[Frame]:
        capture = _open_video(path)
        try:
            for index in itertools.count():
                is_read, image = capture.read()
                if not is_read:
                    return
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
                rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                yield Frame(rgb, f"{path.stem}_{index:06d}", seconds)
        finally:
            capture.release()

    capture = _open_video(path)
    count, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return FrameSource(path, int(count) if count > 0 else None, fps if fps > 0 else None, decode)


def _open_video(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise InvalidInput(
            f"{path} cannot be decoded as a video", hint="convert it, for example to H.264 in .mp4"
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
