"""Describe an exported file: card, inputs and outputs, operators, weight types."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import yaml
from onnx import TensorProto

from export.graph.editor import dims_of, opset_of
from runtime.artefact.card import CARD_KEY, ModelCard
from runtime.artefact.onnx_file import read_metadata
from runtime.artefact.untrusted import clean
from runtime.backend import identify_artefact
from runtime.errors import ModelFileError
from runtime.files import sha256_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """Description of an ONNX file."""

    path: Path
    """ONNX file."""
    num_bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file."""
    opset: int
    """Version of the default operator set; 0 if it is not imported."""
    ir_version: int
    """ONNX format version."""
    inputs: tuple[str, ...]
    """``name type (shape)`` of each input."""
    outputs: tuple[str, ...]
    """``name type (shape)`` of each output."""
    ops: dict[str, int]
    """Nodes by operator, most frequent first."""
    weight_types: dict[str, int]
    """Elements of all constants by type."""
    card: ModelCard | None
    """Model card; ``None`` in a file of another tool."""


def inspect_onnx(path: Path) -> Inspection:
    """Describe an ONNX file; external weights are not loaded.

    Raises:
        ModelFileError: The file is missing, empty, truncated or not ONNX.
    """
    metadata = read_metadata(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own types, which differ between versions
        raise ModelFileError(
            f"{path} is damaged: {error}", hint="copy it again or export it again"
        ) from error
    constants = {tensor.name for tensor in model.graph.initializer}
    weight_types: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        weight_types[_type_name(tensor.data_type)] += math.prod(tensor.dims)
    inputs = (value for value in model.graph.input if value.name not in constants)
    card = metadata.get(CARD_KEY)
    return Inspection(
        path=path,
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        opset=opset_of(model),
        ir_version=model.ir_version,
        inputs=tuple(map(_described, inputs)),
        outputs=tuple(map(_described, model.graph.output)),
        ops=dict(Counter(sorted(_text(node.op_type) for node in model.graph.node)).most_common()),
        weight_types=dict(weight_types.most_common()),
        card=ModelCard.from_json(card, origin=str(path)) if card is not None else None,
    )


def label_set_yaml(path: Path) -> str:
    """Write the label set of an artefact as the YAML text of a label set file.

    Raises:
        ModelFileError: The file is damaged, or has no card.
    """
    card, _ = identify_artefact(path)
    text: str = yaml.safe_dump(
        card.classes, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
    )
    return text.rstrip()


def _described(value: onnx.ValueInfoProto) -> str:
    shape = ", ".join(_text(size) for size in dims_of(value))
    return f"{_text(value.name)} {_type_name(value.type.tensor_type.elem_type)} ({shape})"


def _text(value: object) -> str:
    """Get printable text; protobuf gives ``bytes`` for text that is not UTF-8."""
    return clean(value.decode(errors="replace") if isinstance(value, bytes) else str(value))


def _type_name(code: int) -> str:
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(code)).lower() if code in known else f"type {code}"
