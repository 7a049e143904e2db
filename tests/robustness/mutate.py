"""Seeded ways to spoil bytes and JSON."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

TEXTS = (
    *("", " ", "\n", "a\nb", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "[bold]x[/]", "[/]", "\x00"),
    *("../../etc/passwd", "a/b", "$(id)", "; rm -rf x", "<script>alert(1)</script>", "\u202etxt"),
    *("\ud800", "x" * 20_000, "%s%n", "{0}", "nan", "fp32", "int8", "frames", "tensor", "logits"),
    *("labels", "-o", "--help", "\\", "'", '"', r"$\frac$", "\U0001f600"),
)
NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 8, 63, 64, 127, 255, 256, 65536, 10**9, 2**31, 2**63, 10**30, -(10**9)),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"), True, False),
)


def nasty(random: Random, depth: int = 0) -> Any:
    """Make a value of any type."""
    kind = random.randrange(8)
    if kind < 2:
        return random.choice(TEXTS)
    if kind < 5:
        return random.choice(NUMBERS)
    if kind == 5 or depth > 2:
        return None
    if kind == 6:
        return [nasty(random, depth + 1) for _ in range(random.choice([0, 1, 2, 3, 3, 11, 300]))]
    return {random.choice(TEXTS): nasty(random, depth + 1) for _ in range(random.choice([0, 1, 3]))}


def spoil_json(random: Random, value: Any) -> Any:
    """Copy a value with one to three changes, at shallow and deep places alike."""
    value = copy.deepcopy(value)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places or random.random() < 0.02:
            return nasty(random)
        depth = random.choice(sorted({len(place) for place in places}))
        *path, key = random.choice([place for place in places if len(place) == depth])
        node = value
        for step in path:
            node = node[step]
        change = random.randrange(6)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, list):
            node.insert(key, nasty(random))
        elif change == 2 and isinstance(node, list):
            node[:] = node * random.choice([0, 2, 100])
        else:
            node[key] = nasty(random)
    return value


def spoil_bytes(random: Random, data: bytes, area: tuple[int, int] | None = None) -> bytes:
    """Flip, cut, insert, repeat, clear or append bytes, in an area of the data."""
    low, high = area or (0, len(data))
    high = min(high, len(data))
    content = bytearray(data)
    if not content:
        return random.randbytes(16)
    at = random.randrange(min(low, high - 1), high)
    size = random.choice([1, 4, 16, 256, 4096])
    end = min(at + size, len(content))
    match random.randrange(9):
        case 0 | 1 | 2:
            for _ in range(random.choice([1, 1, 2, 8, 64])):
                content[random.randrange(min(low, high - 1), high)] ^= 1 << random.randrange(8)
        case 3:
            del content[at:]
        case 4:
            content[at:end] = bytes(end - at)
        case 5:
            content[at:end] = random.randbytes(end - at)
        case 6:
            content[at:at] = random.choice([random.randbytes(size), bytes(content[at:end])])
        case 7:
            content += random.randbytes(size)
        case _:
            content[at : at + 4] = random.choice(
                [b"\xff" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f", bytes(4)]
            )
    return bytes(content)


def _places(value: Any, prefix: tuple[Any, ...] = ()) -> Any:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*prefix, key)
        yield from _places(item, (*prefix, key))
