"""``Drawing``: what becomes of the maps of a frame before it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from runtime.artefact.card import CONFIDENCE, ModelCard
from runtime.errors import InvalidInput
from runtime.media.overlay import colors_from_labels, draw_overlay
from runtime.segmenter import Result

Draw = Callable[[Result], np.ndarray]
"""Draws one result: RGB uint8 (H, W, 3), or a map uint8 (H, W)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """How results are drawn."""

    kind: Literal["overlay", "colors", "labels", "confidence"] = "overlay"
    """Class colours over the frame, class colours alone, class indices, or confidence x 255."""
    alpha: float = 0.5
    """Weight of the overlay's colours, 0 to 1."""
    legend: bool = True
    """True to write the class names on the overlay."""
    classes: tuple[str, ...] = ()
    """Names of the classes that get their colour; all if empty."""
    label_ids: bool = False
    """True to write the values that the dataset's masks use (Cityscapes: labelIds), not class indices."""

    def __post_init__(self) -> None:
        for setting, value, kinds in (
            ("label-ids", self.label_ids, ("labels",)),
            ("classes", self.classes, ("overlay", "colors")),
        ):
            if value and self.kind not in kinds:
                raise InvalidInput(
                    f"{setting} has no effect on {self.kind}",
                    hint=f"omit --{setting}, or use --draw {kinds[0]}",
                )

    def for_card(self, card: ModelCard) -> Draw:
        """Get the function that draws the results of an artefact.

        Raises:
            InvalidInput: The artefact lacks such a class, confidence, or mask values.
        """
        shown = _indices(card, self.classes)
        if self.kind == "labels":
            if not self.label_ids:
                return lambda result: result.labels
            values = _mask_values(card)
            return lambda result: cv2.LUT(result.labels, values)
        if self.kind == "confidence":
            return _confidence(card)
        if self.kind == "colors":
            return lambda result: colors_from_labels(result.labels, card, shown=shown)
        return lambda result: draw_overlay(
            result.frame, result.labels, card, alpha=self.alpha, legend=self.legend, shown=shown
        )

    def for_window(self, card: ModelCard) -> Draw:
        """Get the function that draws for a person: class indices become colours."""
        return (Drawing(kind="colors") if self.kind == "labels" else self).for_card(card)


def _indices(card: ModelCard, names: tuple[str, ...]) -> tuple[int, ...]:
    unknown = [name for name in names if name not in card.class_names]
    if unknown:
        raise InvalidInput(
            f"the artefact has no class {unknown[0]!r}",
            hint=f"classes are {', '.join(card.class_names)}",
        )
    return tuple(card.class_names.index(name) for name in names)


def _mask_values(card: ModelCard) -> np.ndarray:
    """Get the value in a mask of each class index, uint8 (256,); other indices stay."""
    values = np.arange(256, dtype=np.uint8)
    if not card.label_values:
        raise InvalidInput(
            f"masks of the label set {card.label_set!r} hold class indices", hint="omit --label-ids"
        )
    for value, index in sorted(card.label_values.items(), reverse=True):
        if index < card.num_classes:
            values[index] = value
    return values


def _confidence(card: ModelCard) -> Draw:
    if CONFIDENCE not in card.outputs:
        raise InvalidInput(
            f"the artefact gives {', '.join(card.outputs)}, no confidence",
            hint="export it with --output labels+confidence",
        )

    def draw(result: Result) -> np.ndarray:
        assert result.confidence is not None
        return result.confidence

    return draw
