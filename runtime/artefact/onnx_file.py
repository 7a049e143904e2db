"""Read the text metadata of an ONNX file without an ONNX library, by walking its outermost protobuf fields.

Source: onnx.proto3 (ONNX 1.16), message ModelProto, and the protobuf wire format.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.errors import ModelFileError

_VARINT, _BYTES = 0, 2
_GRAPH, _METADATA = 7, 14
# Field number of ModelProto -> wire type. 1 ir_version and 5 model_version are numbers; the others are
# 2 producer_name, 3 producer_version, 4 domain, 6 doc_string, 8 opset_import, 20 training_info, 25 functions,
# 26 configuration.
_MODEL_FIELDS = dict.fromkeys((2, 3, 4, 6, _GRAPH, 8, _METADATA, 20, 25, 26), _BYTES)
_MODEL_FIELDS |= {1: _VARINT, 5: _VARINT}
_ENTRY_FIELDS = {1: _BYTES, 2: _BYTES}  # key and value of a metadata_props entry
_EXPORT = "make one with: esnet-export to-onnx WEIGHTS -o model.onnx"


GRAPH_KEY = "esnet_graph_sha256"
"""Entry of the metadata: SHA-256 of the graph, hexadecimal, written with the card."""


def read_metadata(path: Path) -> dict[str, str]:
    """Read ``metadata_props``; the weights are skipped.

    Raises:
        ModelFileError: Missing, a folder, empty, truncated, or not ONNX.
    """
    return _read(path, lambda graph: None)


def check_graph(path: Path) -> None:
    """Compare the graph with the hash in its file: libraries crash on damaged graphs.

    It does not protect from an attacker, who can write the hash as well.

    Raises:
        ModelFileError: As for ``read_metadata``, or the graph has no hash or another one.
    """
    digest = hashlib.sha256()
    expected = _read(path, digest.update).get(GRAPH_KEY)
    if expected != digest.hexdigest():
        problem = "was changed after its export" if expected else "has no hash of its graph"
        raise ModelFileError(f"{path} {problem}", hint="copy it again, or export it again")


def _read(path: Path, on_graph: Callable[[memoryview], object]) -> dict[str, str]:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"model file {str(path)!r} {problem}", hint=_EXPORT)
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty", hint=_EXPORT)
    metadata: dict[str, str] = {}
    has_graph = False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for number, start, end in _fields(data, 0, len(data), _MODEL_FIELDS):
                if number == _GRAPH:
                    has_graph = True
                    with memoryview(data) as view, view[start:end] as graph:
                        on_graph(graph)
                if number == _METADATA:
                    entry = _fields(data, start, end, _ENTRY_FIELDS)
                    texts = {key: bytes(data[first:last]).decode() for key, first, last in entry}
                    metadata[texts.get(1, "")] = texts.get(2, "")
        except EOFError as error:
            raise ModelFileError(
                f"{path} is truncated: {error}", hint="copy it again, or export it again"
            ) from None
        except ValueError:  # a decoding error included
            raise ModelFileError(f"{path} is not an ONNX file", hint=_EXPORT) from None
    if not has_graph:
        raise ModelFileError(f"{path} is not an ONNX file: it has no graph", hint=_EXPORT)
    return metadata


def _fields(
    data: mmap.mmap, start: int, end: int, known: dict[int, int]
) -> Iterator[tuple[int, int, int]]:
    """Walk a message: yield field number and payload bounds of each field that holds bytes.

    Raises:
        EOFError: The message ends inside a field.
        ValueError: Not such a message.
    """
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if known.get(number) != wire_type:
            raise ValueError(f"unknown field {number}")
        value, position = _varint(data, position, end)
        if wire_type == _VARINT:
            continue
        if position + value > end:
            raise EOFError(f"{end} bytes, expected at least {position + value}")
        yield number, position, position + value
        position += value


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise EOFError(f"it ends inside a field, at byte {end}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("varint of more than 10 bytes")
