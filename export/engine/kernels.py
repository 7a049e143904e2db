"""What a compiler made of a graph: its kernels, their types, and the bytes they move."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

_ITEM_BYTES = {
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "FP8": 1,
    "Int8": 1,
    "UInt8": 1,
    "Bool": 1,
    "Int32": 4,
    "Int64": 8,
}
# What the inspector of each TensorRT calls a type -> the compiler's own name.
_TYPE_WORDS = (
    (re.compile(r"\bFP16\b|\bHalf\b", re.I), "Half"),
    (re.compile(r"\bBF16\b|\bBFloat16\b", re.I), "BFloat16"),
    (re.compile(r"\bFP32\b|\bFloat\b", re.I), "Float"),
    (re.compile(r"\bUINT8\b", re.I), "UInt8"),
    (re.compile(r"\bINT8\b", re.I), "Int8"),
    (re.compile(r"\bINT32\b", re.I), "Int32"),
    (re.compile(r"\bINT64\b", re.I), "Int64"),
    (re.compile(r"\bBool\b", re.I), "Bool"),
)
_CONVOLUTION = re.compile(r"conv|correlation", re.I)


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor that a kernel reads or writes."""

    type: str
    """``Float``, ``Half``, ``Int8`` ..."""
    num_bytes: int
    """Its size at the shapes the compiler was told."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel after fusion."""

    kind: str
    """The compiler's name for what it does."""
    name: str
    """Its name, with those of the graph's nodes it came from where the compiler tells."""
    inputs: tuple[Edge, ...]
    """What it reads, weights apart."""
    outputs: tuple[Edge, ...]
    """What it writes."""

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, fused with others or not."""
        return bool(_CONVOLUTION.search(self.kind) or _CONVOLUTION.search(self.name))

    @property
    def num_bytes(self) -> int:
        """Bytes read and written, weights apart."""
        return sum(edge.num_bytes for edge in (*self.inputs, *self.outputs))


def kernels_from_log(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """Read the kernel list that TensorRT-RTX logs at DETAILED verbosity while it builds, GPU or not.

    Args:
        messages: All messages of one build.

    Returns:
        The kernels of the engine; empty if the compiler did not list them.
    """
    text = "\n".join(messages)
    start = text.rfind("Layers:\nName:")
    if start < 0:
        return ()
    rows = text[start:].split("\nI/O Tensors")[0].split("\n")
    return tuple(_kernel_from_row(row) for row in rows if row.startswith("Name:"))


def kernels_from_inspector(text: str) -> tuple[Kernel, ...]:
    """Read the JSON of ``EngineInspector.get_engine_information``; the engine was built at DETAILED."""
    layers = json.loads(text).get("Layers", [])
    return tuple(_kernel_from_layer(layer) for layer in layers if isinstance(layer, dict))


def summarize_kernels(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """Count kernels, bytes moved, and what is written in which type; empty for no kernels."""
    if not kernels:
        return {}
    kinds = Counter(kernel.kind for kernel in kernels)
    types = Counter(edge.type for kernel in kernels for edge in kernel.outputs)
    return {
        "count": len(kernels),
        "bytes_moved": sum(kernel.num_bytes for kernel in kernels),
        "kinds": dict(kinds.most_common()),
        "output_types": dict(types.most_common()),
    }


def convolution_types(kernels: Sequence[Kernel]) -> dict[str, int]:
    """Count the convolutions by the type they compute in: that of what they read, the widest."""
    order = ("Int8", "FP8", "Half", "BFloat16", "Float")
    read = [
        max(
            (edge.type for edge in kernel.inputs if edge.type in order),
            key=order.index,
            default="?",
        )
        for kernel in kernels
        if kernel.is_convolution
    ]
    return dict(Counter(read).most_common())


def _kernel_from_row(row: str) -> Kernel:
    head, _, tail = row.partition("Outputs: [")
    inputs = head.partition("Inputs: [")[2].partition("], Constants:")[0]
    kind = re.search(r"LayerType: (\w+)", row)
    return Kernel(
        kind=kind[1] if kind else "?",
        name=head.partition(",")[0].removeprefix("Name: "),
        inputs=tuple(_edges(inputs)),
        outputs=tuple(_edges(tail.partition("], TacticName")[0])),
    )


def _edges(text: str) -> Iterable[Edge]:
    for match in re.finditer(r"Dimensions: \[([\d,\- ]*)\].*?Datatype: (\w+)", text):
        sizes = [abs(int(size)) for size in match[1].split(",") if size.strip()]
        yield Edge(match[2], prod(sizes) * _ITEM_BYTES.get(match[2], 4))


def _kernel_from_layer(layer: dict[str, Any]) -> Kernel:
    return Kernel(
        kind=str(layer.get("LayerType", "?")),
        name=f"{layer.get('Name', '')} {layer.get('TacticName', '')}".strip(),
        inputs=tuple(map(_edge_from_tensor, layer.get("Inputs", []))),
        outputs=tuple(map(_edge_from_tensor, layer.get("Outputs", []))),
    )


def _edge_from_tensor(tensor: dict[str, Any]) -> Edge:
    told = str(
        tensor.get("Datatype") or tensor.get("Format/Datatype") or tensor.get("Format") or ""
    )
    type_name = next((name for pattern, name in _TYPE_WORDS if pattern.search(told)), told or "?")
    sizes = [abs(int(size)) for size in tensor.get("Dimensions", [])]
    return Edge(type_name, prod(sizes) * _ITEM_BYTES.get(type_name, 4))
