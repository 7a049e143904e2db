"""The supported datasets, by name."""

from __future__ import annotations

from pathlib import Path

from esnet.data.camvid import camvid_split
from esnet.data.cityscapes import cityscapes_split
from esnet.data.labelled import LabelledSplit
from esnet.errors import DatasetError

DATASETS = {"camvid": camvid_split, "cityscapes": cityscapes_split}


def open_split(dataset: str, root: Path, split: str) -> LabelledSplit:
    """Find the files of a dataset's split.

    Args:
        dataset: A key of ``DATASETS``.
        root: The dataset's folder.
        split: Name of the split, such as ``train`` or ``val``.

    Raises:
        DatasetError: The dataset is unknown, the split is missing, or an image has no labels.
    """
    if dataset not in DATASETS:
        raise DatasetError(f"unknown dataset {dataset!r}", hint=f"--dataset {'|'.join(DATASETS)}")
    return DATASETS[dataset](root, split)
