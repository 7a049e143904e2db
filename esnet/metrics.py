"""Confusion matrix, IoU per class, mIoU, pixel accuracy, and label agreement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from esnet.labels import LabelSet
from runtime.media.frames import resize_map


class ConfusionMatrix:
    """Pixel counts of every (true class, predicted class) pair.

    Counts are summed over all images, without ignored pixels; IoU = TP / (TP + FP + FN).

    Source: the Cityscapes benchmark (cityscapesScripts, evalPixelLevelSemanticLabeling.py).
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        """Set all counts to zero.

        Args:
            num_classes: Number of classes, K.
            ignore_index: Label value of pixels that are not counted.
        """
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Add the pixels of one or more images.

        Args:
            labels: True classes or the ignore index, integers of any shape.
            predictions: Predicted classes, 0 to K - 1, integers of the same shape.

        Raises:
            ValueError: The shapes differ, or a value is outside the classes.
        """
        if labels.shape != predictions.shape:
            raise ValueError(
                f"labels {labels.shape} and predictions {predictions.shape} differ in shape"
            )
        counted = labels != self.ignore_index
        true, predicted = labels[counted], predictions[counted]
        for name, values in (("labels", true), ("predictions", predicted)):
            if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
                raise ValueError(
                    f"{name} hold {values.min()} to {values.max()}, expected 0 to {self.num_classes - 1}"
                )
        pairs = true.astype(np.int64) * self.num_classes + predicted
        self.counts += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.counts.shape)

    @property
    def iou_per_class(self) -> np.ndarray:
        """IoU per class, float64 (K,), 0 to 1; NaN for a class that is neither labelled nor predicted."""
        true_positive = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - true_positive
        iou = np.full(len(union), np.nan)
        np.divide(true_positive, union, out=iou, where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean IoU of the classes that occur, 0 to 1; NaN if none occurs."""
        iou = self.iou_per_class
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of counted pixels with the correct class, 0 to 1; NaN if no pixel was counted."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts) / total) if total else float("nan")


def confusion_from_pairs(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], label_set: LabelSet
) -> ConfusionMatrix:
    """Compute the confusion matrix of pairs of class maps, at the size of the labels.

    Args:
        pairs: (labels, predictions), both uint8 (H, W); predictions of another size are resized with nearest
            neighbour.
        label_set: Classes of both.

    Raises:
        ValueError: A value is outside the classes.

    Example:
        >>> labels = np.array([[0, 1], [1, 1]], np.uint8)
        >>> matrix = confusion_from_pairs([(labels, np.zeros_like(labels))], CAMVID)
        >>> matrix.pixel_accuracy, matrix.iou_per_class[:2].tolist()
        (0.25, [0.25, 0.0])
    """
    matrix = ConfusionMatrix(label_set.num_classes, label_set.ignore_index)
    for labels, predictions in pairs:
        matrix.update(labels, resize_map(predictions, (labels.shape[0], labels.shape[1])))
    return matrix


def label_agreement(labels: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Compute the fraction of pixels with equal labels in two lists of class maps (H, W), 0 to 1."""
    return float(np.mean([(a == b).mean() for a, b in zip(labels, reference, strict=True)]))
