"""The datasets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from esnet.data.camvid import camvid_split
from esnet.data.cityscapes import cityscapes_split
from esnet.data.labelled import LabelledSplit
from esnet.errors import DatasetError

DATASETS: Mapping[str, Callable[[Path, str], LabelledSplit]] = MappingProxyType(
    {"camvid": camvid_split, "cityscapes": cityscapes_split}
)


def open_split(dataset: str, root: Path, split: str) -> LabelledSplit:
    """Find a split of a dataset by name.

    Raises:
        DatasetError: An unknown dataset, a missing split, or a picture without its labels.
    """
    if dataset not in DATASETS:
        raise DatasetError(f"unknown dataset {dataset!r}", hint=f"datasets: {', '.join(DATASETS)}")
    return DATASETS[dataset](root, split)
