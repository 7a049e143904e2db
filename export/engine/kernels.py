"""The kernels of a compiled engine: their types and the bytes they read and write."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

from runtime.tensorrt_api import TensorRt

# The compiler's name of a type -> bytes per element, and the words that the engine inspectors use for it.
_TYPES = {
    "Half": (2, r"\b(FP16|Half)\b"),
    "BFloat16": (2, r"\b(BF16|BFloat16)\b"),
    "Float": (4, r"\b(FP32|Float)\b"),
    "UInt8": (1, r"\bUINT8\b"),
    "Int8": (1, r"\bINT8\b"),
    "Int32": (4, r"\bINT32\b"),
    "Int64": (8, r"\bINT64\b"),
    "Bool": (1, r"\bBool\b"),
    "FP8": (1, r"\bFP8\b"),
}
UNKNOWN = "?"
"""Type that the compiler does not report."""
_COMPUTE_TYPES = ("Float", "BFloat16", "Half", "FP8", "Int8")  # widest first
_CONVOLUTION = re.compile(r"conv|correlation", re.I)
# Layer types of fused kernels; only their names tell whether they compute a convolution. Layers of other
# types, such as Reformat, may be named after the convolution beside them.
_FUSED = re.compile(r"fusion|gemm|myelin", re.I)


class Edge(NamedTuple):
    """A tensor that a kernel reads or writes."""

    type: str
    """``Float``, ``Half``, ``Int8`` ..."""
    num_bytes: int
    """Size at the shapes that the compiler optimized for."""


class Kernel(NamedTuple):
    """One kernel after fusion."""

    kind: str
    """Layer type, in the compiler's words."""
    name: str
    """Name, which contains the names of its graph nodes if the compiler reports them."""
    inputs: tuple[Edge, ...]
    """Tensors read, without weights."""
    outputs: tuple[Edge, ...]
    """Tensors written."""
    weights: str = ""
    """Type of the weights; empty if the compiler does not report it."""
    metadata: str = ""
    """Names of its graph nodes, if the compiler reports them apart from the name."""

    @property
    def num_bytes(self) -> int:
        """Bytes read and written, without weights."""
        return sum(edge.num_bytes for edge in (*self.inputs, *self.outputs))


def kernels_from_log(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """Parse the kernel list in TensorRT-RTX's log of a build at DETAILED verbosity; empty without one."""
    text = "\n".join(messages)
    start = text.rfind("Layers:\nName:")
    if start < 0:
        return ()
    rows = text[start:].split("\nI/O Tensors")[0].split("\n")
    return tuple(_kernel_from_row(row) for row in rows if row.startswith("Name:"))


def kernels_of_plan(
    trt: TensorRt, plan: bytes, *, version_compatible: bool, input_name: str, shape: tuple[int, ...]
) -> tuple[Kernel, ...]:
    """List the kernels of an engine with the engine inspector, which loads it on this machine's GPU.

    Args:
        trt: TensorRT that built the engine.
        plan: The engine, built at DETAILED verbosity.
        version_compatible: True if it was built to be.
        input_name: Name of its input.
        shape: Shape of the input, for the formats of a dynamic batch.

    Returns:
        The kernels; empty if the engine cannot be loaded or the list cannot be read.

    Raises:
        BackendUnavailable: No driver or no GPU.
    """
    runtime = trt.create("Runtime")
    if version_compatible:
        runtime.engine_host_code_allowed = True  # such an engine contains a TensorRT runtime
    engine = runtime.deserialize_cuda_engine(plan)
    inspector = None if engine is None else engine.create_engine_inspector()
    if inspector is None:
        return ()
    if trt.has("ExecutionContextAllocationStrategy.USER_MANAGED"):
        strategy = trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
    else:
        context = engine.create_execution_context_without_device_memory()
    if context is not None and context.set_input_shape(input_name, shape):
        # Without the shapes of a context, the formats of a dynamic batch are "N/A due to dynamic shapes".
        inspector.execution_context = context
    layout = trt.module.LayerInformationFormat.JSON
    return kernels_from_inspector(inspector.get_engine_information(layout))


def kernels_from_inspector(text: str) -> tuple[Kernel, ...]:
    """Parse the JSON of ``EngineInspector.get_engine_information`` of an engine built at DETAILED.

    Returns:
        The kernels; empty if this version's JSON cannot be read, which must not cost the built engine.
    """
    try:
        layers = json.loads(text).get("Layers", [])
        return tuple(_kernel_from_layer(layer) for layer in layers if isinstance(layer, dict))
    except (ValueError, TypeError, AttributeError):
        return ()


def summarize_kernels(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """Count kernels, memory traffic in bytes, layer types and output types; empty for no kernels."""
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
    """Count the convolutions, fused or not, by compute type.

    It is the type of the weights, or the widest type of the inputs if that is not reported; ``?`` if unknown.
    """
    return dict(Counter(name for _, name in typed_convolutions(kernels)).most_common())


def typed_convolutions(kernels: Iterable[Kernel]) -> Iterator[tuple[Kernel, str]]:
    """Yield the convolutions with their compute types; see ``convolution_types``."""
    for kernel in kernels:
        fused_name = kernel.name if _FUSED.search(kernel.kind) else ""
        if _CONVOLUTION.search(f"{kernel.kind} {fused_name}"):
            read = {kernel.weights} if kernel.weights else {edge.type for edge in kernel.inputs}
            yield kernel, next((name for name in _COMPUTE_TYPES if name in read), UNKNOWN)


def _kernel_from_row(row: str) -> Kernel:
    head, _, tail = row.partition("Outputs: [")
    inputs = head.partition("Inputs: [")[2].partition("], Constants:")[0]
    kind = re.search(r"LayerType: (\w+)", row)
    return Kernel(
        kind=kind[1] if kind else "?",
        name=head.partition(",")[0].removeprefix("Name: "),
        inputs=_edges_from_text(inputs),
        outputs=_edges_from_text(tail.partition("], TacticName")[0]),
        metadata=row.partition("Metadata: ")[2],
    )


def _edges_from_text(text: str) -> tuple[Edge, ...]:
    found = re.findall(r"Dimensions: \[([\d,\- ]*)\].*?Datatype: (\w+)", text)
    return tuple(
        _edge([int(size) for size in sizes.split(",") if size.strip()], name)
        for sizes, name in found
    )


def _kernel_from_layer(layer: dict[str, Any]) -> Kernel:
    weights = layer.get("Weights")
    return Kernel(
        kind=str(layer.get("LayerType", "?")),
        name=f"{layer.get('Name', '')} {layer.get('TacticName', '')}".strip(),
        inputs=tuple(map(_edge_from_tensor, layer.get("Inputs", []))),
        outputs=tuple(map(_edge_from_tensor, layer.get("Outputs", []))),
        weights=_type_named(str(weights.get("Type"))) if isinstance(weights, dict) else "",
        metadata=str(layer.get("Metadata", "")),
    )


def _edge_from_tensor(tensor: dict[str, Any]) -> Edge:
    keys = ("Datatype", "Format/Datatype", "Format")
    text = next((str(tensor[key]) for key in keys if tensor.get(key)), "")
    return _edge(map(int, tensor.get("Dimensions", [])), _type_named(text))


def _type_named(text: str) -> str:
    """Get the type from the inspector's words; the format of a tensor with a dynamic batch may be unknown."""
    names = (name for name, (_, words) in _TYPES.items() if re.search(words, text, re.I))
    return next(names, UNKNOWN)


def _edge(sizes: Iterable[int], type_name: str) -> Edge:
    """Make an edge; a dynamic axis is a negative size."""
    return Edge(type_name, prod(map(abs, sizes)) * _TYPES.get(type_name, (4, ""))[0])
