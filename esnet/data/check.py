"""Check a dataset before training: sizes, class shares, unknown values, missing pairs, contact sheet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from esnet.data.datasets import DATASETS, find_files
from esnet.data.labelled import (
    class_indices,
    read_image,
    read_mask,
    rgb_from_colour,
    size_problem,
)
from esnet.data.trees import Pair, splits_in
from esnet.errors import DatasetError
from esnet.labels import IGNORE_INDEX, LabelSet, MaskKind, label_set_from_dict

_MAX_LINES = 20
_MAX_TILES = 12
_TILE_WIDTH = 480
_UNKNOWN_COLOUR = (255, 0, 255)
_MAP_VOID = "if it is a class, map it, such as label_values: {0: 0, 255: 1}"


class Value(NamedTuple):
    """A value in a mask."""

    kind: MaskKind
    """Kind of the mask."""
    value: int
    """Label value, class index, or colour 0xRRGGBB."""

    def __str__(self) -> str:
        is_colour = self.kind == "colours"
        return f"colour {rgb_from_colour(self.value)}" if is_colour else f"value {self.value}"


@dataclass(slots=True)
class SplitCheck:
    """Content of a split."""

    split: str
    """Name of the split."""
    files: Sequence[Pair]
    """Images with a mask."""
    sizes: Counter[str] = field(default_factory=Counter)
    """Number of images by size, HEIGHTxWIDTH."""
    pixels: Counter[Value] = field(default_factory=Counter)
    """Number of pixels by value."""
    masks: dict[Value, list[Path]] = field(default_factory=dict)
    """Masks that hold a value."""
    problems: list[str] = field(default_factory=list)
    """One line for each file that cannot be used."""


@dataclass(frozen=True)
class DatasetCheck:
    """Content of a dataset."""

    root: Path
    """The dataset's folder."""
    label_set: LabelSet
    """Its classes; made from the values in the masks if the user gave none."""
    splits: Sequence[SplitCheck]
    """Its splits."""
    _known: dict[str, dict[int, int]] = field(default_factory=dict, init=False, repr=False)

    @property
    def problems(self) -> list[str]:
        """Everything that training would refuse, one line each."""
        lines = [problem for split in self.splits for problem in split.problems]
        for split in self.splits:
            for value, masks in sorted(split.masks.items()):
                if self._index_of(value) is None:
                    lines.append(
                        f"{value} belongs to no class: {split.pixels[value]} pixels in {len(masks)} masks "
                        f"of {split.split}, the first is {masks[0]}"
                    )
        return lines

    def shares(self, split: SplitCheck) -> dict[int | None, float]:
        """Compute the fraction of a split's pixels per class index, ignore index and ``None`` (no class)."""
        totals: Counter[int | None] = Counter()
        for value, count in split.pixels.items():
            totals[self._index_of(value)] += count
        return {index: count / split.pixels.total() for index, count in totals.items()}

    def as_text(self) -> str:
        """Format the counts, a table of the class shares, and the problems."""
        label_set, shares = self.label_set, [self.shares(split) for split in self.splits]
        counts = ", ".join(f"{len(split.files)} {split.split}" for split in self.splits)
        sizes: Counter[str] = sum((split.sizes for split in self.splits), Counter())
        shown = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(5))
        more = f", {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
        lines = [f"data      {self.root}: {counts}", f"sizes     {shown}{more}"]
        lines.append(f"classes   {label_set.num_classes}, {label_set.name}; pixels in %:")
        names = dict(enumerate(label_set.class_names)) | {label_set.ignore_index: "(ignored)"}
        width = max(map(len, names.values()))
        titles = "".join(f"{split.split:>12}" for split in self.splits)
        lines.append(f"          {'':{width}}{titles}")
        for index, name in names.items():
            columns = "".join(f"{100 * share.get(index, 0):12.2f}" for share in shares)
            lines.append(f"          {name:{width}}{columns}")
        for split, share in zip(self.splits, shares, strict=True):
            absent = [name for k, name in enumerate(label_set.class_names) if k not in share]
            if absent:
                void = Value("values", IGNORE_INDEX)
                is_void = void in split.pixels and self._index_of(void) == label_set.ignore_index
                lines.append(
                    f"note      {split.split} has no pixel of: {', '.join(absent)}"
                    + (f"; its masks hold {void}, which is ignored: {_MAP_VOID}" if is_void else "")
                )
        problems = self.problems
        lines += [f"problem   {problem}" for problem in problems[:_MAX_LINES]]
        if len(problems) > _MAX_LINES:
            lines.append(f"problem   and {len(problems) - _MAX_LINES} more")
        return "\n".join(lines)

    def _index_of(self, value: Value) -> int | None:
        if value.kind not in self._known:
            self._known[value.kind] = self.label_set.classes_of(value.kind)
        return self._known[value.kind].get(value.value)


def check_dataset(
    dataset: str,
    root: Path,
    splits: Sequence[str] = (),
    label_set: LabelSet | None = None,
    track: Callable[[Sequence[Pair]], Iterable[Pair]] = iter,
) -> DatasetCheck:
    """Read every image and mask of a dataset.

    Args:
        dataset: A key of ``DATASETS``.
        root: The dataset's folder.
        splits: Names of the splits; empty checks all.
        label_set: Classes; ``None`` takes those of the dataset, or one class per value that occurs.
        track: Wraps the files, for a progress bar.

    Raises:
        DatasetError: There is no such split or no dataset.
    """
    label_set = label_set or DATASETS[dataset].label_set
    checks = []
    for name in splits or splits_in(root, DATASETS[dataset].trees) or ["train"]:
        found = find_files(dataset, root, name)
        check = SplitCheck(name, found.pairs, problems=found.problems)
        check.problems += [f"{path} has no image" for path in found.orphans]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(_examine, found.pairs)
            for pair in track(found.pairs):
                _add(check, pair, *next(results))
        checks.append(check)
    values = sorted({value for check in checks for value in check.pixels})
    return DatasetCheck(root, label_set or _label_set_of(values), checks)


def contact_sheet(check: DatasetCheck) -> np.ndarray:
    """Draw images beside their coloured masks, with the names of the classes; unknown values are magenta.

    Returns:
        RGB, uint8 (H, W, 3).

    Raises:
        DatasetError: No image has a readable mask.
    """
    every = [file for split in check.splits for file in split.files]
    chosen = np.linspace(0, len(every) - 1, min(_MAX_TILES, len(every)))
    files = [every[round(index)] for index in chosen]
    tiles = [tile for file in files if (tile := _tile(file, check.label_set)) is not None]
    if not tiles:
        raise DatasetError("no image has a readable mask, so there is nothing to draw")
    tiles += [np.zeros_like(tiles[0])] * (len(tiles) % 2)
    rows = [_side_by_side(*tiles[start : start + 2]) for start in range(0, len(tiles), 2)]
    return np.vstack([*rows, _legend(check.label_set)])


def _examine(file: Pair) -> tuple[str, Counter[Value], str | None]:
    """Get the size of an image, the pixels per value of its mask, and the problem if there is one."""
    try:
        image, mask = read_image(file.image_path), read_mask(file.mask_path)
    except DatasetError as error:
        return "", Counter(), str(error)
    values, counts = np.unique(mask.values, return_counts=True)
    pixels = {
        Value(mask.kind, value): count
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    }
    size = f"{image.shape[0]}x{image.shape[1]}"
    return size, Counter(pixels), size_problem(file, image, mask.values)


def _add(
    check: SplitCheck, file: Pair, size: str, pixels: Counter[Value], problem: str | None
) -> None:
    if size:
        check.sizes[size] += 1
    if problem is not None:
        check.problems.append(problem)
    check.pixels += pixels
    for value in pixels:
        check.masks.setdefault(value, []).append(file.mask_path)


def _label_set_of(values: Sequence[Value]) -> LabelSet:
    """Make a class for each colour, or else for each label value but 255.

    Raises:
        DatasetError: There are too many.
    """
    colours = [rgb_from_colour(value.value) for value in values if value.kind == "colours"]
    numbers = [value.value for value in values if value.value != IGNORE_INDEX]
    found = colours or numbers or [0]
    if len(found) > 255:
        raise DatasetError(
            f"the masks hold {len(found)} {'colours' if colours else 'values'}, too many for classes",
            hint="save masks as PNG, not as JPEG; or name the values: --label-set classes.yaml",
        )
    fields: dict[str, Any] = {"name": "values found", "names": [f"value {v}" for v in found]}
    if colours:
        fields |= {"names": [f"colour {r} {g} {b}" for r, g, b in colours], "palette": colours}
    else:
        fields["label_values"] = {value: index for index, value in enumerate(numbers)}
    return label_set_from_dict(fields)


def _tile(file: Pair, label_set: LabelSet) -> np.ndarray | None:
    """Draw an image beside its coloured mask; ``None`` if they cannot be read or differ in size."""
    try:
        image, mask = read_image(file.image_path), read_mask(file.mask_path)
    except DatasetError:
        return None
    if image.shape[:2] != mask.values.shape:
        return None
    palette = np.zeros((257, 3), np.uint8)
    palette[: label_set.num_classes], palette[-1] = label_set.palette, _UNKNOWN_COLOUR
    colours = palette[class_indices(mask, label_set)]  # UNKNOWN, -1, is the last row
    blended = cv2.addWeighted(image, 0.4, colours, 0.6, 0)
    both = np.hstack([image, blended])
    height = max(1, round(both.shape[0] * _TILE_WIDTH / both.shape[1]))
    return cv2.resize(both, (_TILE_WIDTH, height), interpolation=cv2.INTER_AREA)


def _side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join two tiles; the lower one gets a black bar."""
    height = max(left.shape[0], right.shape[0])
    bars = [((0, height - tile.shape[0]), (0, 0), (0, 0)) for tile in (left, right)]
    return np.hstack([np.pad(left, bars[0]), np.pad(right, bars[1])])


def _legend(label_set: LabelSet) -> np.ndarray:
    """Draw the colour and the name of each class in four columns."""
    font, num_rows = cv2.FONT_HERSHEY_SIMPLEX, (label_set.num_classes + 3) // 4
    image = np.zeros((20 * num_rows + 10, 2 * _TILE_WIDTH, 3), np.uint8)
    classes = zip(label_set.class_names, label_set.palette, strict=True)
    for index, (name, colour) in enumerate(classes):
        x, y = 10 + index // num_rows * (_TILE_WIDTH // 2), 10 + index % num_rows * 20
        cv2.rectangle(image, (x, y), (x + 14, y + 12), colour, cv2.FILLED)
        cv2.putText(image, name, (x + 22, y + 11), font, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return image
