"""Labelled pictures of a dataset's split: which files belong together, and how their labels are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from esnet.errors import DatasetError
from esnet.labels import LabelSet

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
_UNKNOWN = 254  # no label set is that large, and 255 is an ignore index


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFile:
    """A picture and the picture of its labels."""

    image_path: Path
    """Colour picture."""
    labels_path: Path
    """Single-channel picture of the same height and width."""
    stored_ids: Mapping[int, int]
    """Label value as stored to train id or ignore index; every other value is an error."""

    @property
    def name(self) -> str:
        """The picture's file name without suffix."""
        return self.image_path.stem


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture with its labels, as read."""

    image: np.ndarray
    """RGB, uint8 (H, W, 3)."""
    labels: np.ndarray
    """Train ids or the label set's ignore index, uint8 (H, W)."""


@dataclass(frozen=True, kw_only=True)
class LabelledSplit(Sequence[Sample]):
    """One split of a dataset, read picture by picture."""

    dataset: str
    """Name of the dataset."""
    split: str
    """Name of the split."""
    label_set: LabelSet
    """What the labels mean."""
    files: tuple[LabelledFile, ...]
    """The pictures, sorted."""
    notes: tuple[str, ...] = field(default=())
    """What the user should know about how the files were found."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices are not offered
        """Read one picture with its labels.

        Raises:
            DatasetError: A file that cannot be read, two sizes, or a label outside the set.
        """
        return read_sample(self.files[index])


def read_sample(file: LabelledFile) -> Sample:
    """Read a picture and its labels.

    Raises:
        DatasetError: A file that cannot be read, two sizes, or a label outside the set.
    """
    image = _decode(file.image_path, cv2.IMREAD_COLOR)
    labels = read_labels(file)
    if image.shape[:2] != labels.shape:
        raise DatasetError(
            f"{file.image_path} is {_size(image)}, its labels {file.labels_path} are {_size(labels)}",
            hint="a picture and its labels must have the same height and width",
        )
    return Sample(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), labels)


def read_labels(file: LabelledFile) -> np.ndarray:
    """Read the labels alone, uint8 (H, W).

    Raises:
        DatasetError: A file that cannot be read, has colours, or holds a label outside the set.
    """
    stored = _decode(file.labels_path, cv2.IMREAD_UNCHANGED)
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise DatasetError(
            f"labels {file.labels_path} are {stored.dtype} {stored.shape}, expected one channel of uint8",
            hint="label pictures hold one class index a pixel, not colours",
        )
    table = np.full(256, _UNKNOWN, np.uint8)
    for stored_id, train_id in file.stored_ids.items():
        table[stored_id] = train_id
    labels: np.ndarray = cv2.LUT(stored, table)
    if (labels == _UNKNOWN).any():
        strays = sorted({int(value) for value in np.unique(stored)} - set(file.stored_ids))
        known = f"{min(file.stored_ids)}-{max(k for k in file.stored_ids if k != 255)}"
        also = " and 255" if 255 in file.stored_ids else ""
        raise DatasetError(
            f"{file.labels_path} holds the label values {strays[:8]}, outside the set ({known}{also})",
            hint="choose the dataset that made these labels: --dataset camvid or --dataset cityscapes",
        )
    return labels


def pair_by_stem(
    image_paths: Sequence[Path],
    labels_of: Mapping[str, Path],
    stored_ids: Mapping[int, int],
    *,
    expected: str,
) -> tuple[LabelledFile, ...]:
    """Pair pictures with the labels of the same stem; labels without a picture are left alone.

    Raises:
        DatasetError: A picture without its labels; ``expected`` tells the user how the tree should look.
    """
    missing = [path for path in image_paths if path.stem not in labels_of]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(image_paths)} pictures have no labels, the first is {missing[0]}",
            hint=expected,
        )
    return tuple(
        LabelledFile(image_path=path, labels_path=labels_of[path.stem], stored_ids=stored_ids)
        for path in image_paths
    )


def pictures_in(folder: Path) -> list[Path]:
    """List a folder's pictures, sorted by name; an empty list if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def nearest_size(size_hw: tuple[int, ...]) -> tuple[int, int]:
    """Get the nearest height and width that ESNet takes, multiples of 8."""
    height, width = (max(8, round(side / 8) * 8) for side in size_hw[:2])
    return height, width


def _decode(path: Path, flags: int) -> np.ndarray:
    image = cv2.imread(str(path), flags) if path.is_file() else None
    if image is None:
        problem = "cannot be decoded" if path.is_file() else "does not exist"
        raise DatasetError(f"picture {path} {problem}", hint="copy or extract the dataset again")
    return np.asarray(image)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
