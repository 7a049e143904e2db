"""Bring frames to the form an artefact takes, and class maps back to the size of the frame."""

from __future__ import annotations

import cv2
import numpy as np

from runtime.card import FRAMES, ModelCard
from runtime.errors import InvalidInput

RESIZE_FILTER = "bilinear"


def check_frame(frame: np.ndarray) -> None:
    """Refuse what is not one colour frame.

    Args:
        frame: Must be uint8 (H, W, 3).

    Raises:
        InvalidInput: Wrong type, rank or number of channels.
    """
    if not isinstance(frame, np.ndarray):
        raise InvalidInput(f"a frame must be a numpy array, got {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InvalidInput(
            f"a frame must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}",
            hint="values 0-255, three colour channels last; normalisation is the artefact's own work",
        )


def resize_frame(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a frame with the filter that the card names; the same array when the size already fits.

    Args:
        frame: uint8 (H, W, 3).
        size_hw: Height and width wanted.
    """
    if frame.shape[:2] == size_hw:
        return frame
    return cv2.resize(frame, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


def resize_map(class_map: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a class or confidence map by nearest neighbour, so that no value is invented.

    Args:
        class_map: uint8 (H, W).
        size_hw: Height and width wanted.
    """
    if class_map.shape == size_hw:
        return class_map
    return cv2.resize(class_map, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def batch_from_frames(frames: list[np.ndarray], card: ModelCard, *, dtype: np.dtype) -> np.ndarray:
    """Stack frames of any size into what the artefact takes.

    Args:
        frames: RGB, uint8 (H, W, 3) each.
        card: Tells size, and mean and deviation for a ``tensor`` input.
        dtype: Element type of the input.

    Returns:
        uint8 (N, H, W, 3), or normalised float (N, 3, H, W). A single frame of the right size is a view.
    """
    resized = [resize_frame(frame, card.size_hw) for frame in frames]
    batch = resized[0][None] if len(resized) == 1 else np.stack(resized)
    if card.input == FRAMES:
        return batch
    mean, std = np.array(card.mean, np.float32), np.array(card.std, np.float32)
    normalised = (batch.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=dtype)
