"""Label sets: class names, colours, and the label ids stored in dataset files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from esnet.errors import LabelSetError

IGNORE_ID = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSet:
    """The classes of a dataset, in the order of the network's output channels."""

    name: str
    """Name on the command line."""
    class_names: tuple[str, ...]
    """One name per class; the position is the train id."""
    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour per class, 0-255."""
    ignore_index: int
    """Label value of pixels without a class."""
    train_ids: Mapping[int, int] = field(default_factory=dict)
    """Label id stored in the dataset's files to train id; empty if they are equal."""

    def __post_init__(self) -> None:
        names, colours = len(self.class_names), len(self.palette)
        if names != colours:
            raise ValueError(f"{self.name}: {names} names, {colours} colours")

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)


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
    train_ids={label: train for train, (label, _, _) in enumerate(_CITYSCAPES)},
)

# Source: the 11 classes of Badrinarayanan et al., "SegNet", arXiv 1511.00561; colours of CamVid.
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

LABEL_SETS = {label_set.name: label_set for label_set in (CITYSCAPES, CAMVID)}


def label_set_for(num_classes: int, *, name: str | None = None) -> LabelSet:
    """Get the label set of a network with this many classes.

    Args:
        num_classes: Number of output channels of the network.
        name: A key of ``LABEL_SETS``; ``None`` chooses the set of that size, or numbered classes.

    Raises:
        LabelSetError: The name is unknown, or the set has another size.

    Example:
        >>> label_set_for(19).class_names[:3], label_set_for(4).name
        (('road', 'sidewalk', 'building'), '4-classes')
    """
    fitting = {each.num_classes: each for each in LABEL_SETS.values()}.get(num_classes)
    if name is None:
        return fitting or LabelSet(
            name=f"{num_classes}-classes",
            class_names=tuple(f"class {index}" for index in range(num_classes)),
            palette=tuple(_distinct_colour(index) for index in range(num_classes)),
            ignore_index=IGNORE_ID,
        )
    if name not in LABEL_SETS:
        raise LabelSetError(
            f"unknown label set {name!r}", hint=f"label sets: {', '.join(sorted(LABEL_SETS))}"
        )
    label_set = LABEL_SETS[name]
    if label_set.num_classes != num_classes:
        hint = "omit --label-set to get numbered classes"
        raise LabelSetError(
            f"label set {name!r} has {label_set.num_classes} classes, the checkpoint has {num_classes}",
            hint=f"use --label-set {fitting.name}" if fitting else hint,
        )
    return label_set


def _distinct_colour(index: int) -> tuple[int, int, int]:
    """Get a distinct colour from the bits of the index, as ``VOCcolormap`` of the Pascal VOC devkit does."""
    bits = [(index + 1) >> position & 1 for position in range(24)]
    red, green, blue = (sum(bits[3 * i + c] << (7 - i) for i in range(8)) for c in range(3))
    return red, green, blue
