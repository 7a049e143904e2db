"""Text and JSON from files that anybody may have written."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

# Control characters, lone surrogates, and marks that change the direction of text on a terminal.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Replace all that could control a terminal, line breaks too, by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON with clean text and finite numbers.

    Raises:
        ValueError: Not JSON in UTF-8, NaN, infinity, or nested too deep.
    """
    try:
        return _cleaned(json.loads(text, parse_constant=_refuse, parse_float=_finite))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def command_words(command: str, *program: str) -> list[str]:
    """Split a recorded command into words; none if it does not start with ``program``."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote is not closed
        return []
    return words if words[: len(program)] == [*program] else []


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _refuse(text)


def _refuse(text: str) -> float:
    raise ValueError(f"{text[:20]} is not a finite number")


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): _cleaned(item) for key, item in value.items()}
    return value
