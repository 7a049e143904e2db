"""CamVid with 11 classes, in the folder layout of the SegNet tutorial."""

from __future__ import annotations

from pathlib import Path

from esnet.data.labelled import LabelledFile, LabelledSplit
from esnet.errors import DatasetError
from esnet.labels import CAMVID
from runtime.media.sources import IMAGE_SUFFIXES

_TREE = "expected train/*.png with trainannot/*.png (val, test alike), or train.txt with lines 'image labels'"
_STORED_IDS = {value: value for value in (*range(CAMVID.num_classes), CAMVID.ignore_index)}


def camvid_split(root: Path, split: str) -> LabelledSplit:
    """Find the files of a CamVid split.

    Expected tree, with any image suffix; the list file is read if the split has no folder::

        root/
            train/     0001TP_006690.png ...
            trainannot/0001TP_006690.png ...   labels 0-10; 11 is unlabelled
            val/ valannot/ test/ testannot/
            train.txt  val.txt  test.txt       "image labels" per line, relative to root

    Args:
        root: The dataset's folder.
        split: ``train``, ``val``, ``test``, or ``trainval`` for the first two together.

    Raises:
        DatasetError: There is no such split, or an image has no labels.
    """
    parts = ("train", "val") if split == "trainval" else (split,)
    return LabelledSplit(
        dataset="camvid",
        split=split,
        label_set=CAMVID,
        files=tuple(
            LabelledFile(image_path=image, labels_path=labels, stored_ids=_STORED_IDS)
            for part in parts
            for image, labels in _path_pairs(root, part)
        ),
    )


def _path_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Find the paths of each image and its labels."""
    list_path = root / f"{split}.txt"
    if image_paths := _images_in(root / split):
        return _paired(image_paths, _images_in(root / f"{split}annot"))
    if list_path.is_file():
        return _listed(root, list_path)
    splits = ("train", "val", "test")
    found = [name for name in splits if (root / name).is_dir() or (root / f"{name}.txt").is_file()]
    what = f"it has {', '.join(found)}" if found else "it holds no split of CamVid"
    if not root.is_dir():
        what = "there is no such folder"
    raise DatasetError(f"no CamVid split {split!r} in {root}: {what}", hint=_TREE)


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _paired(image_paths: list[Path], labels_paths: list[Path]) -> list[tuple[Path, Path]]:
    """Pair images and labels of the same stem; labels without an image are ignored."""
    labels_of = {path.stem: path for path in labels_paths}
    missing = [path for path in image_paths if path.stem not in labels_of]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(image_paths)} images have no labels, the first is {missing[0]}",
            hint=_TREE,
        )
    return [(path, labels_of[path.stem]) for path in image_paths]


def _listed(root: Path, list_path: Path) -> list[tuple[Path, Path]]:
    pairs = []
    for number, line in enumerate(list_path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        paths = [_resolve(root, name) for name in line.split()]
        if len(paths) != 2:
            raise DatasetError(
                f"{list_path}, line {number}: {line.strip()!r} is not two paths", hint=_TREE
            )
        for path in paths:
            if not path.is_file():
                raise DatasetError(f"{list_path}, line {number}: {path} does not exist", hint=_TREE)
        pairs.append((paths[0], paths[1]))
    if not pairs:
        raise DatasetError(f"{list_path} lists no images", hint=_TREE)
    return pairs


def _resolve(root: Path, name: str) -> Path:
    """Try the listed path, then its last two parts: the tutorial's lists start with /SegNet/CamVid/."""
    path = root / name
    return path if path.is_file() else root.joinpath(*Path(name).parts[-2:])
