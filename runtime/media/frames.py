"""Convert frames to a model's input, and class maps back to the frame's size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from runtime.artefact.card import FRAMES, ModelCard
from runtime.errors import InvalidInput

RESIZE_FILTER = "bilinear"


def check_frame(frame: np.ndarray) -> None:
    """Check that an array is one colour frame, uint8 (H, W, 3).

    Raises:
        InvalidInput: Another type, rank or number of channels.
    """
    if not isinstance(frame, np.ndarray):
        raise InvalidInput(f"a frame must be a numpy array, got {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InvalidInput(
            f"a frame must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}",
            hint="values 0-255, three colour channels last; the artefact normalises them",
        )


def resize_frame(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a frame with the filter ``RESIZE_FILTER``, which the card names.

    Args:
        frame: uint8 (H, W, 3).
        size_hw: Target height and width.

    Returns:
        uint8 (*size_hw, 3); the same array if it has this size already.
    """
    if frame.shape[:2] == size_hw:
        return frame
    return cv2.resize(frame, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


def resize_map(class_map: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a class or confidence map by nearest neighbour, which adds no new values.

    Args:
        class_map: uint8 (H, W).
        size_hw: Target height and width.

    Returns:
        uint8 ``size_hw``; the same array if it has this size already.
    """
    if class_map.shape == size_hw:
        return class_map
    return cv2.resize(class_map, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def batch_from_frames(frames: Sequence[np.ndarray], card: ModelCard) -> np.ndarray:
    """Resize, stack and, for a ``tensor`` input, normalise frames into one batch of an artefact's input.

    Fewer frames than the card's smallest batch are padded with copies of the last one.

    Args:
        frames: RGB, uint8 (H, W, 3) each, any size; at least one.
        card: Gives size, smallest batch, mean and standard deviation.

    Returns:
        uint8 (N, H, W, 3), or normalised float (N, 3, H, W); C-contiguous. A view if a single frame needs no
        change.

    Example:
        >>> card = ModelCard.from_file(Path("model.onnx"))
        >>> batch_from_frames([frame, frame[::2, ::2]], card).shape
        (2, 64, 128, 3)
    """
    resized = [resize_frame(frame, card.size_hw) for frame in frames]
    resized += [resized[-1]] * (card.batch.min - len(resized))
    batch = resized[0][None] if len(resized) == 1 else np.stack(resized)
    if card.input == FRAMES:
        return np.ascontiguousarray(batch)
    return normalise(batch, card.mean, card.std).astype(card.float_dtype, copy=False)


def normalise(images_NHWC: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Compute (images / 255 - mean) / std.

    Args:
        images_NHWC: RGB, uint8 (N, H, W, 3).
        mean: RGB mean on the 0-1 scale.
        std: RGB standard deviation on the 0-1 scale.

    Returns:
        float32 (N, 3, H, W), C-contiguous.
    """
    scaled = images_NHWC.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
