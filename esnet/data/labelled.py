"""One split of a labelled dataset: its files, and how an image and its mask are read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from esnet.data.trees import Pair
from esnet.errors import DatasetError
from esnet.labels import LabelSet, MaskKind
from runtime.errors import InvalidInput
from runtime.media.images import decode_stored, read_image_bytes

UNKNOWN = -1
"""Class index of mask values that belong to no class."""
_PNG_GREY, _PNG_PALETTE = 0, 3
_COPY_AGAIN = "copy or extract the dataset again"
_TRAIN_IDS = "_labelTrainIds"  # Cityscapes: such masks hold class indices


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its labels."""

    image: np.ndarray
    """RGB, uint8 (H, W, 3)."""
    labels: np.ndarray
    """Class indices or the label set's ignore index, uint8 (H, W)."""


class Mask(NamedTuple):
    """A decoded mask."""

    values: np.ndarray
    """Label values or class indices, uint8 or uint16 (H, W); colours 0xRRGGBB, uint32 (H, W)."""
    kind: MaskKind
    """Meaning of the values."""


@dataclass(frozen=True, kw_only=True)
class LabelledSplit(Sequence[Sample]):
    """One split of a dataset, read image by image."""

    dataset: str
    """Name of the dataset."""
    split: str
    """Name of the split."""
    label_set: LabelSet
    """Classes of the labels."""
    files: tuple[Pair, ...]
    """Files of the split, in order."""
    notes: tuple[str, ...] = ()
    """Remarks for the user about how the files were found."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices are not supported
        """Read one image with its labels.

        Raises:
            DatasetError: A file cannot be read, the sizes differ, or a value belongs to no class.
        """
        image, labels = read_image(self.files[index].image_path), self.labels(index)
        if problem := size_problem(self.files[index], image, labels):
            raise DatasetError(
                problem, hint="an image and its mask must have the same height and width"
            )
        return Sample(image, labels)

    def labels(self, index: int) -> np.ndarray:
        """Read the labels without the image: class indices or the ignore index, uint8 (H, W).

        Raises:
            DatasetError: The mask cannot be read, or a value belongs to no class.
        """
        path = self.files[index].mask_path
        mask = read_mask(path)
        labels = class_indices(mask, self.label_set)
        if labels.min() == UNKNOWN:
            unknown = np.unique(mask.values[labels == UNKNOWN])[:8].tolist()
            found, known = f"label values {unknown}", _ranges(self.label_set.classes_of(mask.kind))
            if mask.kind == "colours":
                found = f"colours {[rgb_from_colour(value) for value in unknown]}"
                known = f"{self.label_set.name}'s palette"
            raise DatasetError(
                f"{path} holds the {found}, outside the classes ({known})",
                hint="select the dataset and label set that made these masks, or map the values with "
                "label_values; esnet-data check lists all values",
            )
        return labels.astype(np.uint8)


def read_image(path: Path) -> np.ndarray:
    """Read an image as RGB, uint8 (H, W, 3).

    Raises:
        DatasetError: The file does not exist or cannot be decoded.
    """
    return cv2.cvtColor(_decode(path, _content(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> Mask:
    """Read a mask: one channel, a PNG with a palette, or colours.

    Raises:
        DatasetError: The file does not exist, cannot be decoded, or has neither one nor three 8-bit channels.
    """
    data = _content(path)
    bit_depth, colour_type = _png_header(data)
    kind: MaskKind = "indices" if path.stem.endswith(_TRAIN_IDS) else "values"
    if colour_type == _PNG_PALETTE:
        return Mask(_palette_indices(path, data), kind)
    stored = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if colour_type == _PNG_GREY and bit_depth < 8:
        stored = stored // (255 // (2**bit_depth - 1))  # OpenCV scales to 0-255
    if stored.ndim == 2 and stored.dtype in (np.uint8, np.uint16):
        return Mask(stored, kind)
    if stored.ndim == 3 and stored.dtype == np.uint8 and stored.shape[2] in (3, 4):
        bgra = cv2.cvtColor(stored, cv2.COLOR_BGR2BGRA) if stored.shape[2] == 3 else stored
        return Mask(bgra.view("<u4")[..., 0] & 0xFFFFFF, "colours")
    raise DatasetError(
        f"mask {path} is {stored.dtype} {stored.shape}, expected one channel, or RGB of 8 bits",
        hint="save it as PNG: class indices in one channel, a palette, or RGB colours",
    )


def class_indices(mask: Mask, label_set: LabelSet) -> np.ndarray:
    """Convert a mask to class indices, the ignore index or ``UNKNOWN``, int16 (H, W)."""
    size = 1 << 24 if mask.kind == "colours" else np.iinfo(mask.values.dtype).max + 1
    known = label_set.classes_of(mask.kind)
    return np.take(_table(tuple(known.items()), size), mask.values)


def rgb_from_colour(colour: int) -> tuple[int, int, int]:
    """Split a colour 0xRRGGBB into red, green and blue."""
    return colour >> 16, colour >> 8 & 255, colour & 255


def size_problem(file: Pair, image: np.ndarray, labels: np.ndarray) -> str | None:
    """Describe different sizes of an image and its labels; ``None`` if they are equal."""
    sizes = [f"{array.shape[0]}x{array.shape[1]}" for array in (image, labels)]
    if sizes[0] == sizes[1]:
        return None
    return f"{file.image_path} is {sizes[0]}, its mask {file.mask_path} is {sizes[1]}"


def nearest_size(size_hw: tuple[int, ...]) -> tuple[int, int]:
    """Round height and width to the nearest multiples of 8, the sizes that ESNet accepts."""
    height, width = (max(8, round(side / 8) * 8) for side in size_hw[:2])
    return height, width


@lru_cache(maxsize=4)
def _table(known: tuple[tuple[int, int], ...], size: int) -> np.ndarray:
    """Make the table of all values, int16 (size,)."""
    table = np.full(size, UNKNOWN, np.int16)
    for value, index in known:
        if value < size:
            table[value] = index
    return table


def _content(path: Path) -> bytes:
    """Read an image file whose header was checked."""
    if not path.is_file():
        raise DatasetError(f"image {path} does not exist", hint=_COPY_AGAIN)
    try:
        return read_image_bytes(path)
    except InvalidInput as error:
        raise DatasetError(str(error), hint=_COPY_AGAIN) from error


def _decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    try:
        return decode_stored(data, str(path), flags)
    except InvalidInput as error:
        raise DatasetError(str(error), hint=_COPY_AGAIN) from error


def _png_header(data: bytes) -> tuple[int, int]:
    """Get bit depth and colour type of a PNG; (0, -1) for another file."""
    return (data[24], data[25]) if data.startswith(b"\x89PNG") else (0, -1)


def _palette_indices(path: Path, data: bytes) -> np.ndarray:
    """Read the indices of a PNG with a palette, uint8 (H, W); OpenCV would replace them by their colours."""
    from PIL import Image  # not a dependency of the base install

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{path} cannot be read as an image: {error}", hint=_COPY_AGAIN
        ) from error


def _ranges(values: Iterable[int]) -> str:
    """Format numbers as ``0-18, 255``."""
    groups = groupby(enumerate(sorted(values)), lambda item: item[1] - item[0])
    runs = [[value for _, value in group] for _, group in groups]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
