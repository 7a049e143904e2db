"""CamVid, 11 classes, as the SegNet tutorial arranged it."""

from __future__ import annotations

from pathlib import Path

from esnet.data.labelled import LabelledFile, LabelledSplit, pair_by_stem, pictures_in
from esnet.errors import DatasetError
from esnet.labels import CAMVID

SPLITS = ("train", "val", "test")
_TREE = "expected train/*.png with trainannot/*.png (val, test alike), or train.txt with lines 'image labels'"
_STORED_IDS = {value: value for value in (*range(CAMVID.num_classes), CAMVID.ignore_index)}


def camvid_split(root: Path, split: str) -> LabelledSplit:
    """Find a split of CamVid.

    The tree, with any image suffix; a split's list file is used where its folder does not exist::

        root/
            train/     0001TP_006690.png ...
            trainannot/0001TP_006690.png ...   labels 0-10, 11 is unlabelled
            val/ valannot/ test/ testannot/
            train.txt  val.txt  test.txt       "image labels" a line, relative to root

    Args:
        root: The folder.
        split: ``train``, ``val``, ``test``, or ``trainval`` for the first two together.

    Raises:
        DatasetError: No such split, or a picture without its labels.
    """
    parts = ("train", "val") if split == "trainval" else (split,)
    return LabelledSplit(
        dataset="camvid",
        split=split,
        label_set=CAMVID,
        files=tuple(file for part in parts for file in _files(root, part)),
    )


def _files(root: Path, split: str) -> tuple[LabelledFile, ...]:
    pictures = pictures_in(root / split)
    if pictures:
        labels = {path.stem: path for path in pictures_in(root / f"{split}annot")}
        return pair_by_stem(pictures, labels, _STORED_IDS, expected=_TREE)
    list_path = root / f"{split}.txt"
    if list_path.is_file():
        return _listed(root, list_path)
    found = [name for name in SPLITS if (root / name).is_dir() or (root / f"{name}.txt").is_file()]
    what = f"it has {', '.join(found)}" if found else "it holds no split of CamVid at all"
    if not root.is_dir():
        what = "there is no such folder"
    raise DatasetError(f"no CamVid split {split!r} in {root}: {what}", hint=_TREE)


def _listed(root: Path, list_path: Path) -> tuple[LabelledFile, ...]:
    files = []
    for number, line in enumerate(list_path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        names = line.split()
        if len(names) != 2:
            raise DatasetError(
                f"{list_path}, line {number}: {line.strip()!r} is not two paths", hint=_TREE
            )
        image, labels = (_resolve(root, name) for name in names)
        if not image.is_file() or not labels.is_file():
            missing = labels if image.is_file() else image
            raise DatasetError(f"{list_path}, line {number}: {missing} does not exist", hint=_TREE)
        files.append(LabelledFile(image_path=image, labels_path=labels, stored_ids=_STORED_IDS))
    if not files:
        raise DatasetError(f"{list_path} lists no picture", hint=_TREE)
    return tuple(files)


def _resolve(root: Path, name: str) -> Path:
    """Take a listed path as it is, or by its last two parts: the tutorial's lists say /SegNet/CamVid/..."""
    path = root / name
    return path if path.is_file() else root.joinpath(*Path(name).parts[-2:])
