"""Datasets by name: CamVid, Cityscapes, and ``folder`` for your own images and masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from esnet.data.labelled import LabelledSplit
from esnet.data.trees import ALL, Pairing, Tree, pair_files
from esnet.errors import DatasetError
from esnet.labels import CAMVID, CITYSCAPES, LabelSet, numbered_classes
from runtime.files import atomic_path

FOLDER = "folder"
_MASK_FOLDERS = ("masks", "labels", "annotations")
_MASK_ENDINGS = ("", "_mask", "_label")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Folders of a dataset, and its classes."""

    label_set: LabelSet | None
    """Classes; ``None`` if the user names them."""
    trees: tuple[Tree, ...]
    """Folders to search."""
    expected: str
    """Description of the folders, for hints."""


_CAMVID_TREE = Tree("{split}", "{split}annot")

DATASETS = {
    "camvid": Dataset(
        label_set=CAMVID,
        trees=(_CAMVID_TREE,),
        expected="expected train/*.png with trainannot/*.png (val, test alike), or train.txt with lines "
        "'image mask'; for your own images: --dataset folder",
    ),
    "cityscapes": Dataset(
        label_set=CITYSCAPES,
        trees=tuple(
            Tree(
                "leftImg8bit/{split}",
                f"{kind}/{{split}}",
                "_leftImg8bit",
                (f"_{kind}_labelTrainIds", f"_{kind}_labelIds"),
            )
            for kind in ("gtFine", "gtCoarse")
        ),
        expected="expected leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png with "
        "gtFine/SPLIT/CITY/NAME_gtFine_labelTrainIds.png (gtCoarse for train_extra)",
    ),
    FOLDER: Dataset(
        label_set=None,
        trees=(
            *(
                Tree("images/{split}", f"{name}/{{split}}", "", _MASK_ENDINGS)
                for name in _MASK_FOLDERS
            ),
            *(
                Tree("{split}/images", f"{{split}}/{name}", "", _MASK_ENDINGS)
                for name in _MASK_FOLDERS
            ),
            _CAMVID_TREE,
            *(Tree("images", name, "", _MASK_ENDINGS) for name in _MASK_FOLDERS),
        ),
        expected="expected images/train/a.jpg with masks/train/a.png (val alike), train/images with "
        "train/masks, or images and masks with train.txt and val.txt",
    ),
}
"""The datasets that ``--dataset`` names."""


def open_split(
    dataset: str, root: Path, split: str, *, label_set: LabelSet | None = None
) -> LabelledSplit:
    """Find the files of a dataset's split.

    Expected trees, with images and masks of any format, also in sub-folders; instead of the folders of the
    splits, a list file gives an image and its mask per line, relative to the root::

        camvid      train/a.png  trainannot/a.png  val/ valannot/ ...
        cityscapes  leftImg8bit/train/CITY/a_leftImg8bit.png  gtFine/train/CITY/a_gtFine_labelTrainIds.png
                    (or _labelIds, which are mapped while reading; gtCoarse for train_extra)
        folder      images/train/a.jpg  masks/train/a.png     (masks, labels or annotations)
                    train/images/a.jpg  train/masks/a.png
                    images/a.jpg  masks/a.png  train.txt  val.txt

    Args:
        dataset: A key of ``DATASETS``.
        root: The dataset's folder.
        split: Name of the split, such as ``train`` or ``val``; ``trainval`` for both; ``all`` for undivided
            folders; or the path of a list file ``*.txt``.
        label_set: Classes; ``None`` takes those of the dataset. ``folder`` has none.

    Raises:
        DatasetError: Unknown dataset, no such split, an image without a mask, or no classes.
    """
    chosen = _dataset(dataset)
    label_set = label_set or chosen.label_set
    if label_set is None:
        raise DatasetError(
            f"the classes of {root} are unknown", hint="name them: --label-set classes.yaml"
        )
    found = find_files(dataset, root, split)
    if found.problems:
        more = f", and {len(found.problems) - 1} more" if len(found.problems) > 1 else ""
        raise DatasetError(f"{found.problems[0]}{more}", hint=chosen.expected)
    split_name = Path(split).stem
    num_mapped = sum(pair.mask_path.stem.endswith("_labelIds") for pair in found.pairs)
    note = (
        f"{num_mapped} of {len(found.pairs)} masks of {split_name} are _labelIds, mapped to train ids while "
        "reading; python -m cityscapesscripts.preparation.createTrainIdLabelImgs converts them once"
    )
    return LabelledSplit(
        dataset=root.resolve().name if dataset == FOLDER else dataset,
        split=split_name,
        label_set=label_set,
        files=tuple(found.pairs),
        notes=(note,) if num_mapped else (),
    )


def open_split_of_model(
    model: LabelSet,
    root: Path,
    split: str,
    *,
    dataset: str | None = None,
    label_set: LabelSet | None = None,
) -> LabelledSplit:
    """Find the files of a split to evaluate a model on.

    Args:
        model: Classes of the model.
        root: The dataset's folder.
        split: Name of the split, or path of a list file.
        dataset: A key of ``DATASETS``; ``None`` takes the one with the model's classes, else ``folder``.
        label_set: Classes of the masks; ``None`` takes those of the dataset, for ``folder`` the model's.

    Raises:
        DatasetError: As for ``open_split``, or the numbers of classes differ.
    """
    if dataset is None:
        known = DATASETS.get(model.name, DATASETS[FOLDER]).label_set
        is_known = known is not None and known.class_names == model.class_names
        dataset = model.name if is_known else FOLDER
    labelled = open_split(
        dataset, root, split, label_set=label_set or (model if dataset == FOLDER else None)
    )
    found, expected = model.num_classes, labelled.label_set.num_classes
    if found != expected:
        raise DatasetError(
            f"the model has {found} classes of {model.name}, {labelled.dataset} has {expected}",
            hint="select the dataset that the model was trained for: --dataset, --label-set",
        )
    if model == numbered_classes(found) or model.class_names == labelled.label_set.class_names:
        return labelled
    names = zip(model.class_names, labelled.label_set.class_names, strict=True)
    ours, theirs = next(pair for pair in names if pair[0] != pair[1])
    note = (
        f"the class names differ: {ours!r} of the model is {theirs!r} of {labelled.label_set.name}"
    )
    return replace(labelled, notes=(*labelled.notes, note))


def find_files(dataset: str, root: Path, split: str) -> Pairing:
    """Find the images of a split and their masks, with the problems of those that cannot be used.

    Raises:
        DatasetError: Unknown dataset, or no such split.
    """
    chosen = _dataset(dataset)
    if (dataset, split) == ("cityscapes", "test"):
        raise DatasetError("the labels of Cityscapes test are not public", hint="use --split val")
    parts = ("train", "val") if split == "trainval" else (split,)
    found = [pair_files(root, part, chosen.trees, chosen.expected) for part in parts]
    return Pairing(*(list(chain.from_iterable(lists)) for lists in zip(*found, strict=True)))


def write_split_lists(
    root: Path, shares: Mapping[str, float], *, seed: int, output: Path
) -> dict[Path, int]:
    """Divide the undivided folders of a ``folder`` dataset at random, and write a list file per split.

    The order of the images depends only on the seed and their paths, so that most images keep their split
    when others are added.

    Args:
        root: The dataset's folder.
        shares: Name of each split but ``train`` to its fraction of the images; ``train`` gets the rest.
        seed: Random seed.
        output: Folder of the lists.

    Returns:
        Each list file that was written, with its number of images.

    Raises:
        DatasetError: A list exists, an image has no mask, or no image is left for training.
    """
    files = open_split(FOLDER, root, ALL, label_set=numbered_classes(1)).files
    lines = [
        "\t".join(str(path.relative_to(root)) for path in (file.image_path, file.mask_path))
        for file in files
    ]
    lines.sort(key=lambda line: hashlib.sha256(f"{seed} {line}".encode()).digest())
    lists = {}
    for name, share in shares.items():
        count = max(1, round(share * len(files))) if share else 0
        lists[name], lines = lines[:count], lines[count:]
    lists["train"] = lines
    if not lines:
        raise DatasetError(
            f"{len(files)} images leave none to train on", hint="lower --val and --test"
        )
    written = {output / f"{name}.txt": sorted(names) for name, names in lists.items() if names}
    for path in written:
        if path.exists():
            raise DatasetError(f"{path} exists", hint="delete it, or choose another folder: -o")
    for path, names in written.items():
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in names), encoding="utf-8")
    return {path: len(names) for path, names in written.items()}


def _dataset(name: str) -> Dataset:
    if name not in DATASETS:
        raise DatasetError(
            f"unknown dataset {name!r}",
            hint=f"datasets: {', '.join(DATASETS)}; {FOLDER} is for your own images and masks",
        )
    return DATASETS[name]
