"""Convert frames to a model's input, and class maps back to the frame's size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from runtime.artefact.card import FRAMES, ModelCard
from runtime.artefact.tensors import tensor_specs
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


def resize_frame(
    frame: np.ndarray,
    size_hw: tuple[int, int],
    out: np.ndarray | None = None,
    *,
    letterbox: bool = False,
) -> np.ndarray:
    """Resize a frame with the filter ``RESIZE_FILTER``, which the card names.

    Args:
        frame: uint8 (H, W, 3).
        size_hw: Target height and width.
        out: uint8 (*size_hw, 3) to write to; ``None`` allocates it.
        letterbox: True to keep the aspect ratio, centred between black bars.

    Returns:
        uint8 (*size_hw, 3): ``out`` if it is given; else the same array if it has this size already.
    """
    if letterbox and (inner := _letterbox(frame.shape[:2], size_hw)) != _letterbox(
        size_hw, size_hw
    ):
        out = np.empty((*size_hw, 3), np.uint8) if out is None else out
        out[:] = 0
        height, width = out[inner].shape[:2]
        out[inner] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        return out
    if frame.shape[:2] != size_hw:
        return cv2.resize(frame, size_hw[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    if out is None:
        return frame
    np.copyto(out, frame)
    return out


def resize_map(
    class_map: np.ndarray, size_hw: tuple[int, int], *, letterbox: bool = False
) -> np.ndarray:
    """Resize a class or confidence map by nearest neighbour, which adds no new values.

    Args:
        class_map: uint8 (H, W).
        size_hw: Target height and width.
        letterbox: True if the frame was letterboxed: the bars are cut off.

    Returns:
        uint8 ``size_hw``; the same array if it has this size already.
    """
    if letterbox:
        class_map = class_map[_letterbox(size_hw, class_map.shape)]
    if class_map.shape == size_hw:
        return class_map
    return cv2.resize(class_map, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _letterbox(frame_hw: Sequence[int], size_hw: Sequence[int]) -> tuple[slice, slice]:
    """Get the rows and columns of an input that a letterboxed frame fills."""
    scale = min(size / side for size, side in zip(size_hw, frame_hw, strict=True))
    rows, columns = (
        slice((size - inner) // 2, (size - inner) // 2 + inner)
        for size, side in zip(size_hw, frame_hw, strict=True)
        for inner in (max(1, round(side * scale)),)
    )
    return rows, columns


def batch_from_frames(
    frames: Sequence[np.ndarray],
    card: ModelCard,
    *,
    color: str = "rgb",
    letterbox: bool = False,
) -> np.ndarray:
    """Resize, stack and, for a ``tensor`` input, normalise frames into one batch of an artefact's input.

    Fewer frames than the card's smallest batch are padded with copies of the last one.

    Args:
        frames: uint8 (H, W, 3) each, any size; at least one.
        card: Gives size, smallest batch, mean and standard deviation.
        color: Channel order of the frames, ``rgb`` or ``bgr``.
        letterbox: As for ``resize_frame``.

    Returns:
        uint8 (N, H, W, 3), or normalised float (N, 3, H, W); RGB, C-contiguous. A view if a single frame
        needs no change.

    Example:
        >>> card = ModelCard.from_file(Path("model.onnx"))
        >>> batch_from_frames([frame, frame[::2, ::2]], card).shape
        (2, 64, 128, 3)
    """
    if len(frames) == 1 == card.batch.min and card.input == FRAMES and color == "rgb":
        image = resize_frame(frames[0], card.size_hw, letterbox=letterbox)
        return np.ascontiguousarray(image[None])
    spec = next(tensor_specs(card))
    batch = np.empty((max(len(frames), card.batch.min), *spec.item_shape), spec.dtype)
    fill_batch(frames, card, batch, color=color, letterbox=letterbox)
    return batch


def fill_batch(
    frames: Sequence[np.ndarray],
    card: ModelCard,
    batch: np.ndarray,
    *,
    color: str = "rgb",
    letterbox: bool = False,
) -> int:
    """Do the same as ``batch_from_frames`` in memory of the caller.

    Args:
        frames: As for ``batch_from_frames``.
        card: As for ``batch_from_frames``.
        batch: The artefact's input, for at least as many frames as are needed; the first ones are written.
        color: As for ``batch_from_frames``.
        letterbox: As for ``resize_frame``.

    Returns:
        Number of frames written: at least the smallest batch.
    """
    for frame, target in zip(frames, batch, strict=False):
        is_tensor = card.input != FRAMES
        out = None if is_tensor else target
        if color == "bgr" and frame.shape[:2] == card.size_hw:  # the conversion is the copy
            image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=out)
        else:
            image = resize_frame(frame, card.size_hw, out, letterbox=letterbox)
            if color == "bgr":
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)
        if is_tensor:
            target[:] = normalise(image[None], card.mean, card.std)[0]
    count = max(len(frames), card.batch.min)
    batch[len(frames) : count] = batch[len(frames) - 1]
    return count


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
