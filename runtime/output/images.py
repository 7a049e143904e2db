"""Image files: one, or a folder with one for each frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.files import atomic_path
from runtime.output.marks import marked, require_own


def write_image(path: Path, image: np.ndarray) -> None:
    """Encode an image by the suffix of ``path`` and write it atomically.

    Args:
        path: Image file to create or replace.
        image: RGB uint8 (H, W, 3), or a map uint8 (H, W).

    Raises:
        InvalidInput: OpenCV cannot encode this file type.
        OSError: The file cannot be written.
    """
    content = _encoded(path.suffix, image)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def image_path(folder: Path, name: str) -> Path:
    """Get the file of a frame in a folder."""
    return folder / f"{name}.png"


def write_frame(folder: Path, name: str, image: np.ndarray, *, overwrite: bool) -> None:
    """Write the file of a frame in a folder, without a wait for the disk.

    Raises:
        InvalidInput: It exists, is not one of ours, and ``overwrite`` is False.
        OSError: The file cannot be written.
    """
    path = image_path(folder, name)
    if not overwrite:
        require_own(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_bytes(_encoded(path.suffix, image))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _encoded(suffix: str, image: np.ndarray) -> bytes:
    is_encoded, data = cv2.imencode(suffix, bgr_from_rgb(image))
    if not is_encoded:
        raise InvalidInput(f"OpenCV cannot encode {suffix} images", hint="use .png or .jpg")
    return marked(data.tobytes())


def bgr_from_rgb(image: np.ndarray) -> np.ndarray:
    """Convert RGB to OpenCV's channel order; a map stays as it is."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
