"""Destinations of drawn frames: one image file, a folder of images, or a video file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from runtime.errors import InvalidInput
from runtime.files import require_outputs
from runtime.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FrameSource
from runtime.output.images import image_path, write_frame, write_image
from runtime.output.marks import require_own
from runtime.output.video import partial_path, video_sink

Sink = AbstractContextManager[Callable[[np.ndarray, str, float], None]]
"""Yields ``write(image, name, timestamp)``, which takes RGB uint8 (H, W, 3) or a map uint8 (H, W), in
order, and a time in seconds."""


def open_sink(path: Path, source: FrameSource, *, overwrite: bool = False) -> Sink:
    """Choose a sink by the suffix of ``path``: image file, video file, or folder, created if it is missing.

    Args:
        path: File or folder to write.
        source: Source of the frames; it must not be overwritten. A video takes its frame rate.
        overwrite: True to replace files that ``esnet-segment`` did not write.

    Returns:
        A sink for ``with``. A folder gets one PNG file per frame, named after the frame.

    Raises:
        InvalidInput: A file of somebody else, a single image for many frames, or a file type that cannot be
            written.
        OSError: The folder cannot be created or written to.
    """
    outputs = [(image_path(path, name), file) for name, file in source.files.items()]
    for target, file in [(path, source.path), (partial_path(path), source.path), *outputs]:
        if file is not None and target.exists() and target.samefile(file):
            raise InvalidInput(
                f"output {target} is the source itself", hint="name another file or folder"
            )
    suffix = path.suffix.lower()
    if is_folder(path):
        if not overwrite:
            for target, _ in outputs:
                require_own(target)
        path.mkdir(parents=True, exist_ok=True)
        return nullcontext(
            lambda image, name, timestamp: write_frame(path, name, image, overwrite=overwrite)
        )
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
    if not overwrite:
        require_own(path)
    if suffix in IMAGE_SUFFIXES:
        return nullcontext(lambda image, name, timestamp: write_image(path, image))
    return video_sink(path, source)


def is_folder(path: Path) -> bool:
    """Check that an output is a folder, or will be one."""
    return path.is_dir() or not path.suffix
