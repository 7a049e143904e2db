"""The mark in files of ``esnet-segment``, which it may replace without being asked to."""

from __future__ import annotations

import zlib
from pathlib import Path

from runtime.errors import InvalidInput

MARK = b"esnet-segment"
RECORD_START = b'{"frame": '
"""Start of a file of records."""
_PNG_HEADER_BYTES = 33  # signature and IHDR
_SEARCHED_BYTES = 4096


def marked(data: bytes) -> bytes:
    """Add the mark to the content of a PNG or JPEG file, as a comment; other formats stay as they are."""
    if data.startswith(b"\x89PNG"):
        chunk = b"tEXtSoftware\0" + MARK
        size, check = (value.to_bytes(4, "big") for value in (len(chunk) - 4, zlib.crc32(chunk)))
        return data[:_PNG_HEADER_BYTES] + size + chunk + check + data[_PNG_HEADER_BYTES:]
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"\xff\xfe" + (len(MARK) + 2).to_bytes(2, "big") + MARK + data[2:]
    return data


def require_own(path: Path) -> None:
    """Refuse to replace a file that was not written by ``esnet-segment``.

    Raises:
        InvalidInput: The file exists and has no mark.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        content = file.read(_SEARCHED_BYTES)
        file.seek(max(len(content), path.stat().st_size - _SEARCHED_BYTES))
        if MARK in content or MARK in file.read() or content.startswith(RECORD_START):
            return
    raise InvalidInput(
        f"output {path} exists and was not written by esnet-segment",
        hint="name another file, or replace it with --overwrite",
    )
