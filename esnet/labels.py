"""Label sets: class names, colours, and the ids their datasets store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from esnet.errors import LabelSetError

IGNORE_ID = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSet:
    """The classes of a dataset, in the order in which a network scores them."""

    name: str
    """Short name, as on the command line."""
    class_names: tuple[str, ...]
    """One name a class; the position is the train id."""
    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour a class, 0-255."""
    ignore_index: int
    """The label value that counts as no class."""
    train_ids: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Label id as stored in the dataset's files to train id; empty where they are the same."""

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.palette):
            raise ValueError(
                f"{self.name}: {len(self.class_names)} names, {len(self.palette)} colours"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def label_ids(self) -> dict[int, int]:
        """Train id to label id, for writing submission files."""
        return {train_id: label_id for label_id, train_id in self.train_ids.items()}


# Source: github.com/mcordts/cityscapesScripts, helpers/labels.py (label id, train id, name, colour).
_CITYSCAPES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

CITYSCAPES = LabelSet(
    name="cityscapes",
    class_names=tuple(name for _, name, _ in _CITYSCAPES),
    palette=tuple(colour for _, _, colour in _CITYSCAPES),
    ignore_index=IGNORE_ID,
    train_ids=MappingProxyType({label: train for train, (label, _, _) in enumerate(_CITYSCAPES)}),
)

# Source: the 11-class split of Badrinarayanan et al., "SegNet", arXiv 1511.00561; CamVid's own colours.
_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (0, 0, 192)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

CAMVID = LabelSet(
    name="camvid",
    class_names=tuple(name for name, _ in _CAMVID),
    palette=tuple(colour for _, colour in _CAMVID),
    ignore_index=11,
)

LABEL_SETS: Mapping[str, LabelSet] = MappingProxyType({"cityscapes": CITYSCAPES, "camvid": CAMVID})


def label_set_for(num_classes: int, *, name: str | None = None) -> LabelSet:
    """Choose the label set of a network with this many classes.

    Args:
        num_classes: Classes that the network scores.
        name: A key of ``LABEL_SETS``; ``None`` takes the set of that size, or numbered classes.

    Raises:
        LabelSetError: An unknown name, or a set of another size.
    """
    if name is None:
        sizes = {label_set.num_classes: label_set for label_set in LABEL_SETS.values()}
        return sizes.get(num_classes) or _numbered(num_classes)
    if name not in LABEL_SETS:
        raise LabelSetError(
            f"unknown label set {name!r}", hint=f"label sets: {', '.join(sorted(LABEL_SETS))}"
        )
    label_set = LABEL_SETS[name]
    if label_set.num_classes != num_classes:
        fitting = [s.name for s in LABEL_SETS.values() if s.num_classes == num_classes]
        raise LabelSetError(
            f"label set {name!r} has {label_set.num_classes} classes, the checkpoint scores {num_classes}",
            hint=f"use --label-set {fitting[0]}"
            if fitting
            else "leave --label-set away for numbered classes",
        )
    return label_set


def _numbered(num_classes: int) -> LabelSet:
    """Make a label set for a network whose classes nobody named."""
    return LabelSet(
        name=f"{num_classes}-classes",
        class_names=tuple(f"class {index}" for index in range(num_classes)),
        palette=tuple(_distinct_colour(index) for index in range(num_classes)),
        ignore_index=IGNORE_ID,
    )


def _distinct_colour(index: int) -> tuple[int, int, int]:
    """Spread colours by the bits of the index, as Pascal VOC does (its devkit's ``VOCcolormap``)."""
    red = green = blue = 0
    value = index + 1
    for shift in range(7, -1, -1):
        red |= (value & 1) << shift
        green |= (value >> 1 & 1) << shift
        blue |= (value >> 2 & 1) << shift
        value >>= 3
    return red, green, blue
