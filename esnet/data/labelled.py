"""One split of a labelled dataset: its files, and how an image and its labels are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from esnet.errors import DatasetError
from esnet.labels import LabelSet

_UNKNOWN = 254  # no label set is that large, and 255 is an ignore index


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFile:
    """The paths of an image and of its labels."""

    image_path: Path
    """Colour image."""
    labels_path: Path
    """Single-channel image of the same height and width."""
    stored_ids: Mapping[int, int]
    """Stored label value to train id or ignore index; every other value is an error."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its labels."""

    image: np.ndarray
    """RGB, uint8 (H, W, 3)."""
    labels: np.ndarray
    """Train ids or the label set's ignore index, uint8 (H, W)."""


@dataclass(frozen=True, kw_only=True)
class LabelledSplit(Sequence[Sample]):
    """One split of a dataset, read image by image."""

    dataset: str
    """Name of the dataset."""
    split: str
    """Name of the split."""
    label_set: LabelSet
    """Classes of the labels."""
    files: tuple[LabelledFile, ...]
    """Files of the split, sorted."""
    notes: tuple[str, ...] = ()
    """Remarks for the user about how the files were found."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices are not supported
        """Read one image with its labels.

        Raises:
            DatasetError: A file cannot be read, the sizes differ, or a label is outside the set.
        """
        file = self.files[index]
        image, labels = _decode(file.image_path, cv2.IMREAD_COLOR), read_labels(file)
        if image.shape[:2] != labels.shape:
            raise DatasetError(
                f"{file.image_path} is {_size(image)}, its labels {file.labels_path} are {_size(labels)}",
                hint="an image and its labels must have the same height and width",
            )
        return Sample(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), labels)


def read_labels(file: LabelledFile) -> np.ndarray:
    """Read the labels without the image.

    Returns:
        Train ids or the ignore index, uint8 (H, W).

    Raises:
        DatasetError: The file cannot be read, has colours, or holds a label outside the set.
    """
    stored = _decode(file.labels_path, cv2.IMREAD_UNCHANGED)
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise DatasetError(
            f"labels {file.labels_path} are {stored.dtype} {stored.shape}, expected one channel of uint8",
            hint="a label image holds one class index per pixel, not colours",
        )
    table = np.full(256, _UNKNOWN, np.uint8)
    table[list(file.stored_ids)] = list(file.stored_ids.values())
    labels: np.ndarray = cv2.LUT(stored, table)
    if (labels == _UNKNOWN).any():
        unknown = sorted({int(value) for value in np.unique(stored)} - set(file.stored_ids))
        known = f"{min(file.stored_ids)}-{max(value for value in file.stored_ids if value != 255)}"
        also = " and 255" if 255 in file.stored_ids else ""
        raise DatasetError(
            f"{file.labels_path} holds the label values {unknown[:8]}, outside the set ({known}{also})",
            hint="choose the dataset that made these labels: --dataset camvid or --dataset cityscapes",
        )
    return labels


def nearest_size(size_hw: tuple[int, ...]) -> tuple[int, int]:
    """Round height and width to the nearest multiples of 8, the sizes that ESNet accepts."""
    height, width = (max(8, round(side / 8) * 8) for side in size_hw[:2])
    return height, width


def _decode(path: Path, flags: int) -> np.ndarray:
    image = cv2.imread(str(path), flags) if path.is_file() else None
    if image is None:
        problem = "cannot be decoded" if path.is_file() else "does not exist"
        raise DatasetError(f"image {path} {problem}", hint="copy or extract the dataset again")
    return np.asarray(image)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
