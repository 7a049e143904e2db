"""Roofline bounds of a network: each fused layer takes at least its compute time and its memory time.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM, 2009.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import onnx
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from benchmarks.errors import BenchmarkError
from export.graph.editor import dims_of, macs_of
from runtime.machine.gpus import GpuSpec

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Precision -> bytes of every activation and weight, whatever the types in the graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Peak compute and bandwidth of a device."""

    name: str
    """Name, for tables."""
    peak_tops: Mapping[str, float]
    """Precision -> 1e12 operations per second; a multiply-accumulate counts as two."""
    bandwidth_gb_s: float
    """Memory bandwidth, 1e9 bytes per second."""
    source: str
    """Source of the figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RooflineBound:
    """Minimum time of layers that run one after the other."""

    ms: float
    """Sum over the layers of the larger of compute and memory time, for one batch."""
    compute_ms: float
    """Operations / peak: the bound if caches hold all activations."""
    memory_share: float
    """Share of ``ms`` in layers bound by memory, 0 to 1."""
    fps: float
    """Frames per second at ``ms``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Nodes that an engine runs as one kernel, which reads its inputs and writes its outputs once."""

    name: str
    """Name of the first node."""
    block: str
    """Module of the layer, such as ``encoder.layers.3``."""
    kind: str
    """Operator of the first node."""
    nodes: tuple[str, ...]
    """Names of all fused nodes."""
    flops: int
    """Two per multiply-accumulate of a convolution, padding included; other operators count as zero."""
    read_values: int
    """Float activations read."""
    written_values: int
    """Float activations written."""
    weight_values: int
    """Constants read."""
    fixed_bytes: int
    """Bytes of integer tensors read and written, such as frames and labels; independent of the precision."""

    def bytes_at(self, precision: str) -> int:
        """Count the bytes read and written at a precision."""
        values = self.read_values + self.written_values + self.weight_values
        return values * ITEM_BYTES[precision] + self.fixed_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The fused layers of a graph, or of a part of it."""

    layers: tuple[Layer, ...]
    """Layers in order of execution."""
    batch: int
    """Frames per batch."""

    @property
    def flops(self) -> int:
        """Operations per batch."""
        return sum(layer.flops for layer in self.layers)

    def bytes_at(self, precision: str) -> int:
        """Count the bytes that all layers read and write per batch."""
        return sum(layer.bytes_at(precision) for layer in self.layers)

    def bound(self, device: Device, precision: str) -> RooflineBound:
        """Compute the minimum time of a batch on a device."""
        flops_per_ms, bytes_per_ms = device.peak_tops[precision] * 1e9, device.bandwidth_gb_s * 1e6
        pairs = [
            (x.flops / flops_per_ms, x.bytes_at(precision) / bytes_per_ms) for x in self.layers
        ]
        total_ms = sum(map(max, pairs))
        memory_bound_ms = sum(memory for compute, memory in pairs if memory > compute)
        return RooflineBound(
            ms=total_ms,
            compute_ms=sum(compute for compute, _ in pairs),
            memory_share=memory_bound_ms / total_ms,
            fps=self.batch * 1e3 / total_ms,
        )

    def bounds(self, device: Device) -> dict[str, RooflineBound]:
        """Compute ``bound`` at every precision of a device."""
        return {precision: self.bound(device, precision) for precision in device.peak_tops}

    def parts(self, *, by_layer: bool = False) -> list[tuple[str, Network]]:
        """Split by block, or by layer, in order of execution."""
        grouped: dict[str, list[Layer]] = {}
        for layer in self.layers:
            grouped.setdefault(layer.name if by_layer else layer.block, []).append(layer)
        return [(name, replace(self, layers=tuple(layers))) for name, layers in grouped.items()]


def device_from_gpu(gpu: GpuSpec) -> Device:
    """Return the published peaks of a GPU."""
    tops = {"fp32": gpu.fp32_tflops, "fp16": gpu.fp16_tflops, "int8": gpu.int8_tops}
    return Device(
        name=gpu.name, peak_tops=tops, bandwidth_gb_s=gpu.bandwidth_gb_s, source=gpu.source
    )


def network_from_onnx(model: onnx.ModelProto, *, batch: int = 1) -> Network:
    """Fuse the nodes of a graph as engines do, and count operations and bytes of each layer.

    A convolution takes in the additions, ReLUs and scalings after it, a pool its affine, an argmax its casts.
    A concat is free if nothing else reads its inputs: they are written side by side. Reshape, QuantizeLinear
    and DequantizeLinear are views.

    The graph is not modified; ``batch`` is the size of a dynamic batch axis.

    Raises:
        BenchmarkError: A shape cannot be inferred.
    """
    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    for value in (*concrete.graph.input, *concrete.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        if not axis.HasField("dim_value"):
            axis.dim_value = batch
    del concrete.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(concrete).graph
    tensors = _tensors(graph)
    num_frames = tensors[graph.input[0].name].shape[0]
    constants = {tensor.name for tensor in graph.initializer}
    groups = _fuse(_remove_views(graph), [value.name for value in graph.output])
    layers = tuple(_layer(nodes, tensors, constants) for nodes in groups)
    return Network(layers=layers, batch=num_frames)


def block_of(name: str) -> str:
    """Return the module of a node: ``encoder.layers.3`` for ``encoder.layers.3.conv``."""
    match = re.match(r"(?:en|de)coder\.(?:layers\.\d+|[^./]+)|[^./]+", name)
    return match[0] if match else name


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    item_bytes: int | None
    """Bytes of an integer item; ``None`` for floats and constants, whose bytes depend on the precision."""


_VIEWS = {
    *("DequantizeLinear", "Dropout", "Flatten", "Identity"),
    *("QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze"),
}
_POINTWISE = {
    *("Abs", "Add", "Cast", "Clip", "Div", "Max", "Min", "Mul"),
    *("Neg", "PRelu", "Relu", "Round", "Sigmoid", "Sub"),
}
_SHUFFLES = {"DepthToSpace", "SpaceToDepth", "Transpose"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def _tensors(graph: onnx.GraphProto) -> dict[str, _Tensor]:
    """Collect shape and type of every tensor."""
    tensors = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape, dtype = dims_of(value), value.type.tensor_type.elem_type
        if all(isinstance(size, int) for size in shape):
            is_float = dtype in _FLOATS
            item_bytes = None if is_float else tensor_dtype_to_np_dtype(dtype).itemsize
            tensors[value.name] = _Tensor(tuple(map(int, shape)), item_bytes)
    tensors |= {tensor.name: _Tensor(tuple(tensor.dims), None) for tensor in graph.initializer}
    names = (name for node in graph.node for name in (*node.input, *node.output))
    if unknown := next((name for name in names if name and name not in tensors), None):
        raise BenchmarkError(
            f"the shape of tensor {unknown!r} cannot be inferred",
            hint="export the artefact again: esnet-export to-onnx WEIGHTS",
        )
    return tensors


def _remove_views(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """List the nodes without views; in place, readers of a view read its source."""
    sources: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        inputs = [sources.get(name, name) for name in node.input if name]
        del node.input[:]
        node.input.extend(inputs)
        if node.op_type in _VIEWS:
            sources[node.output[0]] = inputs[0]
        else:
            nodes.append(node)
    for value in graph.output:
        value.name = sources.get(value.name, value.name)
    return nodes


def _fuse(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[list[onnx.NodeProto]]:
    """Group nodes into layers, in order of execution."""
    num_readers = Counter(outputs)
    for node in nodes:
        num_readers.update(set(node.input))
    groups: list[list[onnx.NodeProto]] = []
    makers: dict[str, int] = {}  # tensor -> index of its group
    for node in nodes:
        made = [name for name in node.input if name in makers]
        is_sole_reader = all(num_readers[name] == 1 for name in made)
        if node.op_type == "Concat" and len(made) == len(node.input) and is_sole_reader:
            continue
        latest = max(made, key=makers.__getitem__, default="")
        index = makers.get(latest, -1)
        if index < 0 or num_readers[latest] > 1 or not _can_join(node, groups[index]):
            index = len(groups)
            groups.append([])
        groups[index].append(node)
        makers.update(dict.fromkeys(node.output, index))
    return groups


def _can_join(node: onnx.NodeProto, group: Sequence[onnx.NodeProto]) -> bool:
    first = group[0]
    is_copy = first.op_type in _POINTWISE  # a kernel that copies can shuffle as well
    fits = node.op_type in _POINTWISE or (is_copy and node.op_type in _SHUFFLES)
    return fits and len(first.output) == 1


def _layer(
    nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, _Tensor], constants: Collection[str]
) -> Layer:
    first, made = nodes[0], {name for node in nodes for name in node.output}
    used = (*first.input, *first.output)
    inputs = {name for node in nodes for name in node.input} - made
    read = [tensors[name] for name in inputs if name not in constants]
    written = [tensors[name] for name in (nodes[-1].output[0], *first.output[1:]) if name]
    name = first.name or nodes[-1].output[0]
    return Layer(
        name=name,
        block=block_of(name),
        kind=first.op_type,
        nodes=tuple(node.name for node in nodes),
        flops=2 * macs_of(first, {name: tensors[name].shape for name in used if name}),
        read_values=sum(prod(t.shape) for t in read if t.item_bytes is None),
        written_values=sum(prod(t.shape) for t in written if t.item_bytes is None),
        weight_values=sum(prod(tensors[name].shape) for name in inputs if name in constants),
        fixed_bytes=sum(prod(t.shape) * t.item_bytes for t in (*read, *written) if t.item_bytes),
    )
