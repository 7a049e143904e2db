"""Class maps as colours, blended over the frame, with a legend of the visible classes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from runtime.artefact.card import ModelCard
from runtime.errors import InvalidInput
from runtime.media.frames import check_frame

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colors_from_labels(
    labels: np.ndarray, card: ModelCard, *, shown: Sequence[int] = ()
) -> np.ndarray:
    """Convert a class map to the colours of its classes.

    Args:
        labels: uint8 (H, W); values that are no class (the ignore index) become black.
        card: Gives the palette.
        shown: Class indices that get their colour, the others become black; empty for all.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    return cv2.applyColorMap(labels, _palette(card, "rgb", shown))


def class_areas(labels: np.ndarray, card: ModelCard) -> np.ndarray:
    """Get the share of a class map that each class covers, 0 to 1, float32 (K,)."""
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256])
    areas: np.ndarray = counts.ravel()[: card.num_classes] / labels.size
    return areas


def draw_overlay(
    frame: np.ndarray,
    labels: np.ndarray,
    card: ModelCard,
    *,
    alpha: float = 0.5,
    legend: bool = True,
    color: str = "rgb",
    shown: Sequence[int] = (),
) -> np.ndarray:
    """Blend the colours of a class map over its frame.

    Args:
        frame: uint8 (H, W, 3).
        labels: uint8 (H, W), the frame's size.
        card: Gives palette and class names.
        alpha: Weight of the colours, 0 (frame only) to 1 (colours only).
        legend: True to name the classes that cover at least 0.5 % of the frame.
        color: Channel order of the frame and of the result, ``rgb`` or ``bgr``.
        shown: Class indices to colour and to name, the rest of the frame stays as it is; empty for all.

    Returns:
        uint8 (H, W, 3), fresh.

    Raises:
        InvalidInput: Not a frame, sizes that differ, or alpha out of range.

    Example:
        >>> card = ModelCard.from_file(Path("model.onnx"))
        >>> labels = np.zeros(frame.shape[:2], np.uint8)
        >>> draw_overlay(frame, labels, card, alpha=1.0, legend=False)[0, 0].tolist()
        [128, 128, 128]
    """
    check_frame(frame)
    if labels.shape != frame.shape[:2]:
        raise InvalidInput(f"labels {labels.shape} and frame {frame.shape[:2]} differ in size")
    if not 0 <= alpha <= 1:
        raise InvalidInput(f"alpha must be between 0 and 1, got {alpha}")
    palette = _palette(card, color, shown)
    image = cv2.applyColorMap(labels, palette)
    cv2.addWeighted(frame, 1 - alpha, image, alpha, 0, dst=image)
    if shown:
        is_hidden = np.ones(256, np.uint8)
        is_hidden[list(shown)] = 0
        cv2.copyTo(frame, cv2.LUT(labels, is_hidden), image)
    if legend:
        _draw_legend(image, labels, card, palette, shown or range(card.num_classes))
    return image


def _palette(card: ModelCard, color: str, shown: Sequence[int] = ()) -> np.ndarray:
    """Get the colours of all 256 label values, uint8 (256, 1, 3); values without a colour are black."""
    table = np.zeros((256, 1, 3), np.uint8)
    for index in shown or range(card.num_classes):
        table[index] = card.palette[index]
    return np.ascontiguousarray(table[..., ::-1]) if color == "bgr" else table


def _draw_legend(
    image: np.ndarray,
    labels: np.ndarray,
    card: ModelCard,
    palette: np.ndarray,
    shown: Sequence[int],
) -> None:
    """Draw swatch and name of each visible class in the upper left corner, largest area first."""
    areas = class_areas(labels, card)
    named = [int(index) for index in np.argsort(-areas) if areas[index] >= 0.005 and index in shown]
    scale = image.shape[0] / 512 * 0.5
    row = max(8, round(36 * scale))
    height = min(len(named), (image.shape[0] - row) // row)
    if height <= 0:
        return
    texts = [f"{card.class_names[index]} {100 * areas[index]:.0f}%" for index in named[:height]]
    text_width = max(cv2.getTextSize(text, _FONT, scale, 1)[0][0] for text in texts)
    right, bottom = min(image.shape[1], text_width + 2 * row), row // 2 + height * row
    image[:bottom, :right] //= 4
    for line, (index, text) in enumerate(zip(named, texts, strict=False)):
        top = row // 4 + line * row
        swatch = ((row // 4, top), (row, top + row * 3 // 4))
        cv2.rectangle(image, *swatch, palette[index, 0].tolist(), cv2.FILLED)
        origin = (row + row // 3, top + row * 5 // 8)
        cv2.putText(image, text, origin, _FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)
