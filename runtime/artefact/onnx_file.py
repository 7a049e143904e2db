"""Read an ONNX file's text metadata by walking its outermost protobuf fields: no ONNX library, no weights.

Source: onnx.proto3 (ONNX 1.16), message ModelProto, and the protobuf wire format.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import ModelFileError

_VARINT, _BYTES = 0, 2
_GRAPH, _METADATA = 7, 14
# Field number of ModelProto -> wire type.
_MODEL_FIELDS = {
    1: _VARINT,  # ir_version
    2: _BYTES,  # producer_name
    3: _BYTES,  # producer_version
    4: _BYTES,  # domain
    5: _VARINT,  # model_version
    6: _BYTES,  # doc_string
    _GRAPH: _BYTES,
    8: _BYTES,  # opset_import
    _METADATA: _BYTES,  # metadata_props
    20: _BYTES,  # training_info
    25: _BYTES,  # functions
    26: _BYTES,  # configuration
}


def read_metadata(path: Path) -> dict[str, str]:
    """Read ``metadata_props``.

    Raises:
        ModelFileError: Missing, a folder, empty, truncated, or not ONNX.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"model file {str(path)!r} {what}", hint=_EXPORT)
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty", hint=_EXPORT)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        metadata: dict[str, str] = {}
        has_graph = False
        try:
            for number, start, end in _fields(data, 0, len(data), _MODEL_FIELDS):
                has_graph |= number == _GRAPH
                if number == _METADATA:
                    pair = {
                        n: bytes(data[s:e]) for n, s, e in _fields(data, start, end, {1: 2, 2: 2})
                    }
                    metadata[pair.get(1, b"").decode()] = pair.get(2, b"").decode()
        except _CutShort as error:
            raise ModelFileError(
                f"{path} is cut short: {error}", hint="copy it again or export it anew"
            ) from None
        except (_NotOnnx, UnicodeDecodeError):
            raise ModelFileError(f"{path} is not an ONNX file", hint=_EXPORT) from None
    if not has_graph:
        raise ModelFileError(f"{path} is not an ONNX file: it has no graph", hint=_EXPORT)
    return metadata


_EXPORT = "make one with: esnet-export to-onnx WEIGHTS -o model.onnx"


class _CutShort(Exception):
    pass


class _NotOnnx(Exception):
    pass


def _fields(
    data: mmap.mmap, start: int, end: int, known: dict[int, int]
) -> Iterator[tuple[int, int, int]]:
    """Walk a message: field number, and the bounds of its payload."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if known.get(number) != wire_type:
            raise _NotOnnx
        value, position = _varint(data, position, end)
        if wire_type == _VARINT:
            continue
        if position + value > end:
            raise _CutShort(f"{end} bytes where at least {position + value} belong")
        yield number, position, position + value
        position += value


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _CutShort(f"it ends inside a field, at byte {end}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _NotOnnx
