"""The confusion matrix and what is read off it: IoU per class, mIoU, pixel accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from esnet.labels import LabelSet
from runtime.media.frames import resize_map


class ConfusionMatrix:
    """Counts of (true class, predicted class), pixel by pixel.

    Source: the definition of the Cityscapes benchmark (cityscapesScripts, evalPixelLevelSemanticLabeling.py):
    counts are summed over all images first, ignored pixels left out, and IoU = TP / (TP + FP + FN).
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        """Start from zero.

        Args:
            num_classes: Classes, K.
            ignore_index: Label value that counts as no class.
        """
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Add pictures.

        Args:
            labels: True classes or the ignore index, integers of any shape.
            predictions: Predicted classes, 0 to K - 1, of the same shape.

        Raises:
            ValueError: Two shapes, or a value outside the classes.
        """
        if labels.shape != predictions.shape:
            raise ValueError(
                f"labels {labels.shape} and predictions {predictions.shape} differ in shape"
            )
        counted = labels != self.ignore_index
        true, predicted = labels[counted], predictions[counted]
        for name, values in (("labels", true), ("predictions", predicted)):
            if values.size and not (
                int(values.min()) >= 0 and int(values.max()) < self.num_classes
            ):
                raise ValueError(
                    f"{name} hold {values.min()} to {values.max()}, expected 0 to {self.num_classes - 1}"
                )
        pairs = true.astype(np.int64) * self.num_classes + predicted
        self.counts += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.counts.shape)

    @property
    def iou_per_class(self) -> np.ndarray:
        """IoU of every class, float64 (K,), 0 to 1; NaN for a class neither labelled nor predicted."""
        true_positive = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - true_positive
        iou = np.full(len(union), np.nan)
        np.divide(true_positive, union, out=iou, where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean IoU of the classes that occur, 0 to 1; NaN if none does."""
        iou = self.iou_per_class
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of counted pixels with the right class, 0 to 1; NaN if nothing was counted."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts) / total) if total else float("nan")


def confusion_from_pairs(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], label_set: LabelSet
) -> ConfusionMatrix:
    """Count pairs of class maps on the grid of the labels.

    Args:
        pairs: (labels, predictions), both uint8 (H, W); predictions are resized to the labels' size by
            nearest neighbour.
        label_set: The classes of both.

    Raises:
        ValueError: A value outside the classes.
    """
    matrix = ConfusionMatrix(label_set.num_classes, label_set.ignore_index)
    for labels, predictions in pairs:
        matrix.update(labels, resize_map(predictions, (labels.shape[0], labels.shape[1])))
    return matrix


def label_agreement(labels: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Measure the share of pixels with equal labels in two lists of class maps (H, W), 0 to 1."""
    return float(np.mean([(a == b).mean() for a, b in zip(labels, reference, strict=True)]))
