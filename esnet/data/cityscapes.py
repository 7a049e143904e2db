"""Cityscapes with 19 classes, in its official folder layout."""

from __future__ import annotations

from pathlib import Path

from esnet.data.labelled import LabelledFile, LabelledSplit
from esnet.errors import DatasetError
from esnet.labels import CITYSCAPES, IGNORE_ID

_LABELS_FOLDER = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}
_TREE = (
    "expected leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png with "
    "gtFine/SPLIT/CITY/NAME_gtFine_labelTrainIds.png (gtCoarse for train_extra)"
)
_NUM_LABEL_IDS = 34
_FROM_TRAIN_IDS = {value: value for value in (*range(CITYSCAPES.num_classes), IGNORE_ID)}
_FROM_LABEL_IDS = {
    value: CITYSCAPES.train_ids.get(value, IGNORE_ID) for value in range(_NUM_LABEL_IDS)
}


def cityscapes_split(root: Path, split: str) -> LabelledSplit:
    """Find the files of a Cityscapes split.

    Expected tree; an image that has only ``_labelIds`` gets them mapped to train ids while reading::

        root/
            leftImg8bit/{train,val,train_extra}/CITY/NAME_leftImg8bit.png
            gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png      or NAME_gtFine_labelIds.png
            gtCoarse/train_extra/CITY/NAME_gtCoarse_labelTrainIds.png  or NAME_gtCoarse_labelIds.png

    Args:
        root: The dataset's folder.
        split: ``train``, ``val``, ``train_extra`` (coarse labels), or ``trainval``.

    Raises:
        DatasetError: There is no such split, or an image has no labels.
    """
    parts = ("train", "val") if split == "trainval" else (split,)
    files = tuple(file for part in parts for file in _files(root, part))
    num_mapped = sum(file.stored_ids is _FROM_LABEL_IDS for file in files)
    note = (
        f"{num_mapped} of {len(files)} labels of {split} are _labelIds, mapped to train ids while reading; "
        "python -m cityscapesscripts.preparation.createTrainIdLabelImgs converts them once"
    )
    return LabelledSplit(
        dataset="cityscapes",
        split=split,
        label_set=CITYSCAPES,
        files=files,
        notes=(note,) if num_mapped else (),
    )


def _files(root: Path, split: str) -> list[LabelledFile]:
    if split == "test":
        raise DatasetError("the labels of Cityscapes test are not public", hint="use --split val")
    images = root / "leftImg8bit"
    image_paths = sorted((images / split).glob("*/*_leftImg8bit.*"))
    if split not in _LABELS_FOLDER or not image_paths:
        found = sorted(path.name for path in images.iterdir()) if images.is_dir() else []
        what = f"leftImg8bit has {', '.join(found)}" if found else "there is no leftImg8bit"
        raise DatasetError(f"no Cityscapes split {split!r} in {root}: {what}", hint=_TREE)
    return [_with_labels(root, path, split) for path in image_paths]


def _with_labels(root: Path, image_path: Path, split: str) -> LabelledFile:
    kind = _LABELS_FOLDER[split]
    stem = image_path.stem.removesuffix("_leftImg8bit")
    folder = root / kind / split / image_path.parent.name
    for suffix, ids in (("labelTrainIds", _FROM_TRAIN_IDS), ("labelIds", _FROM_LABEL_IDS)):
        labels_path = folder / f"{stem}_{kind}_{suffix}.png"
        if labels_path.is_file():
            return LabelledFile(image_path=image_path, labels_path=labels_path, stored_ids=ids)
    raise DatasetError(
        f"{image_path} has no labels: no {folder / stem}_{kind}_label(Train)Ids.png", hint=_TREE
    )
