"""Allowed values of model cards and engine records: types, ranges, and classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

MAX_BATCH = 1024
MAX_SIDE = 16_384
MAX_PIXELS = 1 << 25
"""Pixels of one frame at most."""
MAX_BATCH_PIXELS = 1 << 28
"""Pixels of the largest batch at most."""
MAX_CLASSES = 255
_MAX_NAME = 60
_MAX_TEXT = 10_000
_MAX_HEAD = 512


def value_problems(card: Any) -> Iterator[str]:
    """Describe each value of a ``ModelCard`` that has another type or range; later ones rely on these."""
    for name, (is_valid, expected) in _VALUES.items():
        if not is_valid(value := getattr(card, name)):
            yield f"{name} {str(value)[:60]!r}, expected {expected}"
    for name in ("form", "source", "quantization", "parity", "created"):
        entries = getattr(card, name)
        if not isinstance(entries, Mapping):
            yield f"{name} {str(entries)[:60]!r}, expected an object"
            continue
        for key, (is_valid, expected) in _ENTRIES.items():
            if key in entries and not is_valid(entries[key]):
                yield f"{name}.{key} {str(entries[key])[:60]!r}, expected {expected}"
    height, width = card.size_hw
    if height * width > MAX_PIXELS or height * width * card.batch[2] > MAX_BATCH_PIXELS:
        yield f"batches of {card.batch[2]} frames of {height}x{width}, too large"
    yield from class_problems(
        (card.label_set, *card.class_names), card.palette, card.ignore_index, card.label_values
    )


def record_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """Describe each value of an engine record that has another type or range; a missing one is ``None``."""
    for name, (is_valid, expected) in _RECORD.items():
        value: Any = fields
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if not is_valid(value):
            yield f"{name} is {str(value)[:60]!r}, expected {expected}"


def class_problems(
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    ignore_index: int,
    label_values: Mapping[int, int],
) -> Iterator[str]:
    """Describe what is wrong with classes.

    Args:
        names: Name of the label set, then one name per class.
        palette: One colour per class, red, green and blue.
        ignore_index: Label of pixels without a class.
        label_values: Value in a mask to class index or ``ignore_index``.
    """
    classes = names[1:]
    count = len(classes)
    if not 1 <= count <= MAX_CLASSES:
        yield f"{count} classes, expected 1 to {MAX_CLASSES}"
    for name in names:
        if name != name.strip() or not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
            yield f"name {name[: _MAX_NAME + 1]!r}, expected 1 to {_MAX_NAME} printable characters"
    if repeated := {name for name in classes if classes.count(name) > 1}:
        yield f"two classes have the name {min(repeated)!r}"
    if len(palette) != count:
        yield f"{count} names, {len(palette)} colours"
    for colour in palette:
        if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
            yield f"colour {list(colour)}, expected red, green and blue from 0 to 255"
    if not count <= ignore_index <= 255:
        yield f"ignore_index {ignore_index}, expected {count} to 255: no class has it"
    for value, index in label_values.items():
        if not 0 <= value <= 65535 or not (0 <= index < count or index == ignore_index):
            yield (
                f"label_values has {value}: {index}, expected a value up to 65535 and "
                f"a class index up to {count - 1} or {ignore_index}"
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e6


def _all(is_valid: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        is_sequence = isinstance(value, (tuple, list)) and len(value) == (
            len(value) if count is None else count
        )
        return is_sequence and all(map(is_valid, value))

    return check


def _is_batch(value: Any) -> bool:
    return _all(_is_whole, 3)(value) and 1 <= value[0] <= value[1] <= value[2] <= MAX_BATCH


def _is_side(value: Any) -> bool:
    return _is_whole(value) and 8 <= value <= MAX_SIDE and value % 8 == 0


def _is_counts(value: Any) -> bool:
    return isinstance(value, Mapping) and _all(_is_whole)([*value.values()])


def _is_shares(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and _all(_is_number)([*value.values()]))


def _is_capability(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{1,2}\.\d\+?", value) is not None


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.+-]{0,40}", value) is not None


def _is_kernels(value: Any) -> bool:
    keys = ("count", "bytes_moved")
    return value == {} or (
        isinstance(value, Mapping) and all(_is_whole(value.get(k)) for k in keys)
    )


_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "text"),
    "size_hw": (_all(_is_side, 2), f"height and width, multiples of 8 up to {MAX_SIDE}"),
    "batch": (_is_batch, f"1 <= min <= opt <= max <= {MAX_BATCH}"),
    "mean": (_all(_is_number, 3), "three numbers"),
    "std": (_all(lambda value: _is_number(value) and value > 0, 3), "three numbers above 0"),
    "label_set": (_is_text, "text"),
    "class_names": (_all(_is_text), "names"),
    "palette": (_all(_all(_is_whole, 3)), "colours"),
    "ignore_index": (_is_whole, "a whole number"),
    "label_values": (_is_counts, "class indices"),
    "optimized_for": (_is_text, "text"),
}
# Entries that the code reads, in the mappings of the card.
_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "head_classes": (lambda value: _is_whole(value) and 1 <= value <= _MAX_HEAD, "a number"),
    "suits": (_all(_is_text), "names"),
    "backends": (_all(_is_text), "names"),
    "kept": (_all(_is_text), "names"),
    "restored": (_all(_is_text), "names"),
    "sha256": (_is_text, "text"),
    "command": (lambda value: isinstance(value, str), "text"),
    "equal_labels_bf16": (lambda value: value is None or _is_number(value), "a number"),
}
_RECORD: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "plan_sha256": (_is_text, "text"),
    "onnx.name": (_is_text, "text"),
    "onnx.sha256": (_is_text, "text"),
    "tensorrt.kind": (_is_text, "text"),
    "tensorrt.version": (_is_version, "a version"),
    "target.sms": (_all(_is_capability), "compute capabilities"),
    "target.gpu": (lambda value: value is None or _is_text(value), "text"),
    "precision.asked": (_is_text, "text"),
    "precision.built": (_is_counts, "numbers by type"),
    "precision.mac_shares": (_is_shares, "shares by type"),
    "precision.equal_labels": (lambda value: value is None or _is_number(value), "a number"),
    "profile": (_is_batch, f"1 <= min <= opt <= max <= {MAX_BATCH}"),
    "kernels": (_is_kernels, "nothing, or count and bytes_moved"),
    "build.command": (lambda value: isinstance(value, str), "text"),
    "build.seconds": (lambda value: value is None or _is_number(value), "a number"),
}
