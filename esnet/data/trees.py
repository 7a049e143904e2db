"""Find the images of a dataset split and their masks: in parallel folders, or by a list file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from esnet.errors import DatasetError
from runtime.media.sources import IMAGE_SUFFIXES

ALL = "all"
"""Name of the split that has all pairs of the folders that are not divided into splits."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Parallel folders; the mask of ``images/a/b.jpg`` is ``masks/a/b.png``, with any image suffix."""

    images: str
    """Folder of the images; ``{split}`` stands for the name of the split."""
    masks: str
    """Folder of the masks, likewise."""
    image_ending: str = ""
    """End of the image names before the suffix, which mask names lack."""
    mask_endings: tuple[str, ...] = ("",)
    """Ends of the mask names before the suffix; the first that exists is taken."""

    @property
    def has_splits(self) -> bool:
        """True if each split has folders of its own."""
        return "{split}" in self.images


class Pair(NamedTuple):
    """An image and its mask."""

    image_path: Path
    """Image file."""
    mask_path: Path
    """Mask file."""


class Pairing(NamedTuple):
    """The files of a split."""

    pairs: list[Pair]
    """Images with their masks, sorted or in the order of the list."""
    problems: list[str]
    """One line for each image without a mask and each bad line of a list."""
    orphans: list[Path]
    """Masks without an image."""


def pair_files(root: Path, split: str, trees: Sequence[Tree], expected: str) -> Pairing:
    """Find the files of a split.

    Args:
        root: The dataset's folder.
        split: Name of a folder or of a list file in ``root``, path of a list file ``*.txt``, or ``all``.
            A line of a list is an image and a mask, separated by a tab or space, relative to ``root``; or
            only an image, whose mask is found in the parallel folders.
        trees: Folders to search; the first that exist are taken.
        expected: Description of these folders, for hints.

    Raises:
        DatasetError: There is no such split.
    """
    for tree in trees:
        image_folder, mask_folder = (
            root / _fill(part, split) for part in (tree.images, tree.masks)
        )
        is_asked_for = tree.has_splits or split == ALL
        if is_asked_for and image_folder.is_dir() and mask_folder.is_dir():
            return _paired(tree, image_folder, mask_folder)
    for list_path in (root / f"{split}.txt", root / split, Path(split)):
        if list_path.suffix == ".txt" and list_path.is_file():
            return _listed(root, list_path, trees)
    found = splits_in(root, trees)
    what = f"it has {', '.join(found)}" if found else "it has no images with masks"
    raise DatasetError(
        f"no split {split!r} in {root}: {what if root.is_dir() else 'there is no such folder'}",
        hint="esnet-data split writes train.txt and val.txt" if found == [ALL] else expected,
    )


def splits_in(root: Path, trees: Sequence[Tree]) -> list[str]:
    """List the splits of a dataset: folders, else list files, else ``all`` for undivided folders."""
    names = set[str]()
    for tree in trees:
        head, _, tail = tree.images.partition("{split}")
        folders = (path for path in (root / head).glob(f"*{tail}") if tree.has_splits)
        for folder in folders:
            name = folder.relative_to(root / head).parts[0]
            if (root / _fill(tree.masks, name)).is_dir():
                names.add(name)
    lists = {path.stem for path in root.glob("*.txt")} & {"train", "val", "test"}
    undivided = [tree for tree in trees if not tree.has_splits]
    has_all = any(
        (root / tree.images).is_dir() and (root / tree.masks).is_dir() for tree in undivided
    )
    return sorted(names or lists or ({ALL} if has_all else ()))


def _fill(folder: str, split: str) -> str:
    return folder.replace("{split}", split)


def _paired(tree: Tree, image_folder: Path, mask_folder: Path) -> Pairing:
    masks = {_key(path, mask_folder): path for path in _images_in(mask_folder)}
    images = _images_in(image_folder)
    pairs, problems, keys = [], [], set()
    for image in images:
        key = _key(image, image_folder).removesuffix(tree.image_ending)
        keys.add(key)
        mask = next((masks[key + end] for end in tree.mask_endings if key + end in masks), None)
        if mask is None:
            problems.append(f"{image} has no mask {mask_folder / key}{tree.mask_endings[0]}.png")
        else:
            pairs.append(Pair(image, mask))
    orphans = []
    for key, path in masks.items():
        bases = [key.removesuffix(end) for end in tree.mask_endings if key.endswith(end)]
        if bases and not keys.intersection(bases):
            orphans.append(path)
    if not images:
        problems.append(f"{image_folder} holds no images")
    return Pairing(pairs, problems, orphans)


def _images_in(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in paths if not path.name.startswith("."))


def _key(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _listed(root: Path, list_path: Path, trees: Sequence[Tree]) -> Pairing:
    try:
        lines = list_path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{list_path} is not text, so it is no list of images") from error
    undivided: dict[str, Pair] | None = None
    pairs, problems = [], []
    for number, line in enumerate(lines, start=1):
        names = line.strip().split("\t") if "\t" in line.strip() else line.split()
        place = f"{list_path}, line {number}"
        if len(names) == 1:
            undivided = _by_name(root, trees) if undivided is None else undivided
            if names[0] in undivided:
                pairs.append(undivided[names[0]])
            else:
                problems.append(f"{place}: no image with a mask is named {names[0]!r}")
        elif len(names) == 2:
            pair = Pair(*(_resolve(root, name) for name in names))
            missing = [str(path) for path in pair if not path.is_file()]
            if missing:
                problems.append(f"{place}: {missing[0]} does not exist")
            else:
                pairs.append(pair)
        elif names:
            problems.append(f"{place}: {line.strip()!r} is not an image and a mask")
    if not pairs and not problems:
        problems.append(f"{list_path} lists no images")
    return Pairing(pairs, problems, [])


def _by_name(root: Path, trees: Sequence[Tree]) -> dict[str, Pair]:
    """Map path below ``root``, file name and stem of each image of the undivided folders to its pair."""
    names: dict[str, Pair] = {}
    for tree in trees:
        folders = root / tree.images, root / tree.masks
        if not tree.has_splits and all(folder.is_dir() for folder in folders):
            for pair in _paired(tree, *folders).pairs:
                path = pair.image_path
                names |= dict.fromkeys((str(path.relative_to(root)), path.name, path.stem), pair)
    return names


def _resolve(root: Path, name: str) -> Path:
    """Try the listed path, then its last two parts: the lists of CamVid start with /SegNet/CamVid/."""
    path = root / name
    return path if path.is_file() else root.joinpath(*Path(name).parts[-2:])
