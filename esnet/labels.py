"""Label sets: class names, colours, and the values that masks store for the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from esnet.errors import LabelSetError
from runtime.artefact.card_values import class_problems
from runtime.artefact.untrusted import parse_json

MaskKind = Literal["values", "indices", "colours"]
"""Content of a mask: values for ``label_values``, class indices, or colours of the palette."""
IGNORE_INDEX = 255
_KEYS = ("name", "names", "palette", "ignore_index", "label_values")
_EXAMPLE = "a label set file holds for example: names: [path, tree]"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSet:
    """The classes of a dataset, in the order of the network's output channels.

    Raises:
        LabelSetError: A name, colour or index is invalid.
    """

    name: str
    """Name of the set."""
    class_names: tuple[str, ...]
    """One name per class; the position is the class index."""
    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour per class, 0-255."""
    ignore_index: int = IGNORE_INDEX
    """Label of pixels without a class, from K to 255."""
    label_values: Mapping[int, int] = field(default_factory=dict)
    """Value in a mask to class index or ignore index; empty if masks hold class indices."""

    def __post_init__(self) -> None:
        names = self.name, *self.class_names
        problems = class_problems(names, self.palette, self.ignore_index, self.label_values)
        if problem := next(problems, None):
            raise LabelSetError(f"label set {self.name!r}: {problem}")

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def classes_of(self, kind: MaskKind) -> dict[int, int]:
        """Map every value that a mask of a kind may hold to its class index or the ignore index.

        Colours are 0xRRGGBB. Black and the value 255 are ignored unless a class has them.

        Raises:
            LabelSetError: Two classes have the same colour, and ``kind`` is ``colours``.
        """
        if kind == "colours":
            colours = {(r << 16) + (g << 8) + b: k for k, (r, g, b) in enumerate(self.palette)}
            if len(colours) < self.num_classes:
                raise LabelSetError(
                    f"masks have colours, but two classes of {self.name} have the same colour",
                    hint="give each class its own colour in the palette of the label set",
                )
            return {0: self.ignore_index} | colours
        ignored = dict.fromkeys((IGNORE_INDEX, self.ignore_index), self.ignore_index)
        if kind == "values" and self.label_values:
            return ignored | dict(self.label_values)
        return ignored | {index: index for index in range(self.num_classes)}

    def as_dict(self) -> dict[str, Any]:
        """Convert to the content of a label set file."""
        fields = {
            "name": self.name,
            "names": list(self.class_names),
            "palette": [list(colour) for colour in self.palette],
            "ignore_index": self.ignore_index,
        }
        return fields | ({"label_values": dict(self.label_values)} if self.label_values else {})


# Source: github.com/mcordts/cityscapesScripts, helpers/labels.py (label id, name, colour).
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
_NUM_LABEL_IDS = 34

CITYSCAPES = LabelSet(
    name="cityscapes",
    class_names=tuple(name for _, name, _ in _CITYSCAPES),
    palette=tuple(colour for _, _, colour in _CITYSCAPES),
    label_values=dict.fromkeys(range(_NUM_LABEL_IDS), IGNORE_INDEX)
    | {label_id: index for index, (label_id, _, _) in enumerate(_CITYSCAPES)},
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
"""Label sets in this package, by name."""


def numbered_classes(num_classes: int) -> LabelSet:
    """Make the label set of a network whose classes have no names: ``class 0`` to ``class K-1``.

    Example:
        >>> numbered_classes(2).class_names, numbered_classes(2).name
        (('class 0', 'class 1'), '2-classes')
    """
    names = [f"class {index}" for index in range(num_classes)]
    return label_set_from_dict({"name": f"{num_classes}-classes", "names": names})


def load_label_set(source: str | Path, *, num_classes: int | None = None) -> LabelSet:
    """Get a label set by name, or read its file.

    The file is YAML or JSON; only ``names`` is required::

        name: orchard                    # default: the name of the file
        names: [path, tree, fruit]
        palette: [[128, 64, 128], [0, 128, 0], [255, 0, 0]]   # RGB; default: distinct colours
        ignore_index: 255                # label of pixels without a class
        label_values: {7: 0, 21: 1, 22: 1, 40: 2, 0: 255}     # value in a mask: class index

    Args:
        source: A key of ``LABEL_SETS``, or a file ending in ``.yaml``, ``.yml`` or ``.json``.
        num_classes: Number of classes of the checkpoint; ``None`` accepts any.

    Raises:
        LabelSetError: The name is unknown, the file is invalid, or the number of classes differs.
    """
    path = Path(source)
    is_name = str(source) in LABEL_SETS and not path.is_file()
    label_set = LABEL_SETS[str(source)] if is_name else _read_file(path)
    if num_classes not in (None, label_set.num_classes):
        raise LabelSetError(
            f"label set {label_set.name!r} has {label_set.num_classes} classes, "
            f"the checkpoint has {num_classes}",
            hint=label_set_hint(num_classes),
        )
    return label_set


def label_set_hint(num_classes: int | None) -> str:
    """Describe the values of ``--label-set`` that fit a number of classes."""
    fitting = [name for name, each in LABEL_SETS.items() if each.num_classes == num_classes]
    return " or ".join(f"--label-set {text}" for text in (*fitting, "classes.yaml"))


def label_set_from_dict(
    fields: object, *, origin: str = "label set", name: str | None = None
) -> LabelSet:
    """Make a label set from the content of a label set file.

    Args:
        fields: The parsed content.
        origin: Name of the file, for error messages.
        name: Name of the set if the content has none.

    Raises:
        LabelSetError: The content is not a label set, or invalid.
    """
    names = fields.get("names") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or not isinstance(names, list) or not names:
        raise LabelSetError(f"{origin} has no list of class names", hint=_EXAMPLE)
    if unknown := [key for key in fields if key not in _KEYS]:
        raise LabelSetError(
            f"{origin} has the unknown key {unknown[0]!r}", hint=f"keys: {', '.join(_KEYS)}"
        )
    title: Any = fields.get("name", name)
    for text in (title, *names):
        if not isinstance(text, str):
            raise LabelSetError(
                f"{origin} has the name {text!r}, which is not text", hint='put it in quotes: "no"'
            )
    colours = fields.get("palette") or [_distinct_colour(index) for index in range(len(names))]
    values = fields.get("label_values") or {}
    try:
        return LabelSet(
            name=title,
            class_names=tuple(names),
            palette=tuple((_whole(r), _whole(g), _whole(b)) for r, g, b in colours),
            ignore_index=_whole(fields.get("ignore_index", IGNORE_INDEX)),
            label_values={_whole(value): _whole(index) for value, index in values.items()},
        )
    except LabelSetError as error:
        raise LabelSetError(f"{origin}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise LabelSetError(
            f"{origin}: palette, ignore_index or label_values is not made of whole numbers: {error}",
            hint="palette: [[128, 64, 128], ...], ignore_index: 255, label_values: {7: 0, 8: 1}",
        ) from error


def _whole(value: Any) -> int:
    """Convert a number, or a key of a JSON object, to int."""
    if isinstance(value, float | bool):
        raise TypeError(f"got {value}")
    return int(value)


def _read_file(path: Path) -> LabelSet:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml") or not path.is_file():
        raise LabelSetError(
            f"label set {str(path)!r} is neither a known name nor a YAML or JSON file",
            hint=f"names: {', '.join(sorted(LABEL_SETS))}; files: classes.yaml, classes.json",
        )
    try:
        text = path.read_text(encoding="utf-8")
        fields = parse_json(text) if suffix == ".json" else _parse_yaml(text)
    except (ValueError, RecursionError) as error:
        raise LabelSetError(f"{path} cannot be parsed: {error}", hint=_EXAMPLE) from error
    return label_set_from_dict(fields, origin=str(path), name=path.stem)


def _parse_yaml(text: str) -> object:
    import yaml  # not a dependency of the base install

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _distinct_colour(index: int) -> tuple[int, int, int]:
    """Get a distinct colour from the bits of the index, as ``VOCcolormap`` of the Pascal VOC devkit does."""
    bits = [(index + 1) >> position & 1 for position in range(24)]
    red, green, blue = (sum(bits[3 * i + c] << (7 - i) for i in range(8)) for c in range(3))
    return red, green, blue
