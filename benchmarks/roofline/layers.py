"""The least time a network can take on a device: of each fused layer, the larger of its compute and memory.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM, 2009.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx
from onnx import TensorProto

from benchmarks.errors import BenchmarkError
from export.graph.editor import dims_of
from runtime.machine.gpus import GpuSpec

ITEM_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Precision -> bytes of a value: every activation and every weight, whatever the graph's own types."""

COMPUTE, MEMORY = "compute", "memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What can compute and move so much at most."""

    name: str
    """For the tables."""
    peak_tops: Mapping[str, float]
    """Precision -> 1e12 operations a second; a multiplication and its addition are two."""
    bandwidth_gb_s: float
    """Memory bandwidth, 1e9 bytes a second."""
    source: str
    """Where the figures come from."""


@dataclass(frozen=True, slots=True)
class RooflineBound:
    """The least time of one layer."""

    compute_ms: float
    """Operations over peak."""
    memory_ms: float
    """Bytes over bandwidth."""

    @property
    def ms(self) -> float:
        """The larger of the two."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> str:
        """Which of the two it is, ``compute`` or ``memory``."""
        return COMPUTE if self.compute_ms >= self.memory_ms else MEMORY


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What an engine would run as one kernel: it reads its inputs once, and writes its outputs once."""

    name: str
    """Of the first node."""
    kind: str
    """Operator of the first node."""
    nodes: tuple[str, ...]
    """Everything that is folded into it, itself first."""
    flops: int
    """Two for each multiply-accumulate of a convolution, padding included; all else counts as none."""
    read_values: int
    """Activations read."""
    written_values: int
    """Activations written."""
    weight_values: int
    """Constants read."""
    fixed_bytes: int
    """Bytes read and written that no precision changes: frames, class maps."""

    @property
    def block(self) -> str:
        """The module it belongs to, such as ``encoder.layers.3``."""
        return block_of(self.name)

    def bytes_at(self, precision: str) -> int:
        """Count the bytes read and written."""
        values = self.read_values + self.written_values + self.weight_values
        return values * ITEM_BYTES[precision] + self.fixed_bytes

    def intensity(self, precision: str) -> float:
        """Get the operations for each byte moved."""
        return self.flops / self.bytes_at(precision)

    def floor(self, device: Device, precision: str) -> RooflineBound:
        """Get the least time on a device."""
        return RooflineBound(
            compute_ms=self.flops / device.peak_tops[precision] / 1e9,
            memory_ms=self.bytes_at(precision) / device.bandwidth_gb_s / 1e6,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkBound:
    """The least time of a network, its layers one after the other."""

    ms: float
    """For one batch: the sum of the layers' floors."""
    compute_ms: float
    """What the operations alone would take: the bound that holds even if no activation left the caches."""
    memory_share: float
    """Share of ``ms`` spent in layers that memory bounds, 0 to 1."""
    fps: float
    """Frames a second at ``ms``."""

    def needed_efficiency(self, target_fps: float) -> float:
        """Get how much of this speed an engine must reach to hold a rate; above 1 it cannot."""
        return target_fps / self.fps


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The fused layers of a graph."""

    layers: tuple[Layer, ...]
    """In order of execution."""
    batch: int
    """Frames they process at once."""

    @property
    def flops(self) -> int:
        """Operations of a batch."""
        return sum(layer.flops for layer in self.layers)

    def bytes_at(self, precision: str) -> int:
        """Count the bytes that all layers read and write for a batch."""
        return sum(layer.bytes_at(precision) for layer in self.layers)

    def floor(self, device: Device, precision: str) -> NetworkBound:
        """Get the least time of a batch on a device."""
        return sum_floors((layer.floor(device, precision) for layer in self.layers), self.batch)

    def blocks(self) -> dict[str, list[Layer]]:
        """Group the layers by module, in order of execution."""
        grouped: dict[str, list[Layer]] = {}
        for layer in self.layers:
            grouped.setdefault(layer.block, []).append(layer)
        return grouped


def network_from_onnx(model: onnx.ModelProto, *, batch: int = 1) -> Network:
    """Fuse an exported graph as engines do, and count what each layer computes and moves.

    A convolution takes along the additions, ReLUs and scalings behind it, a pool its affine, an argmax its
    casts. A concat of tensors that nobody else reads costs nothing: their makers write side by side. Reshapes
    and quantize or dequantize nodes are other names of a tensor.

    Args:
        model: An artefact's graph, float or with Q/DQ. Not modified.
        batch: Size of its open batch axis; a fixed one stays.

    Raises:
        BenchmarkError: A shape cannot be inferred.
    """
    tensors, fixed_batch = _tensors(model, batch)
    return Network(layers=tuple(_Fusion(model.graph, tensors).layers()), batch=fixed_batch)


def device_from_gpu(target: GpuSpec) -> Device:
    """Get the peaks of a GPU of the table."""
    return Device(
        name=target.name,
        peak_tops={
            "fp32": target.fp32_tflops,
            "fp16": target.fp16_tflops,
            "int8": target.int8_tops,
        },
        bandwidth_gb_s=target.bandwidth_gb_s,
        source=target.source,
    )


def sum_floors(floors: Iterable[RooflineBound], batch: int) -> NetworkBound:
    """Add up layers that run one after the other for a batch."""
    floors = list(floors)
    total_ms = sum(floor.ms for floor in floors)
    memory_ms = sum(floor.ms for floor in floors if floor.bound == MEMORY)
    return NetworkBound(
        ms=total_ms,
        compute_ms=sum(floor.compute_ms for floor in floors),
        memory_share=memory_ms / total_ms,
        fps=batch * 1e3 / total_ms,
    )


def block_of(name: str) -> str:
    """Name the module of a node: ``encoder.layers.3`` of ``encoder.layers.3.conv``; a head is one itself."""
    match = re.match(r"(?:en|de)coder\.(?:layers\.\d+|[^./]+)|[^./]+", name)
    return match[0] if match else name


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    item_bytes: int | None
    """Bytes of an item that no precision changes; ``None`` for floats."""

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(slots=True)
class _Draft:
    """A layer that may still take nodes in."""

    nodes: list[onnx.NodeProto]
    reads: dict[str, None]
    weights: dict[str, None]
    output: str
    flops: int = 0
    more_outputs: list[str] = field(default_factory=list)


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


class _Fusion:
    """Walks a graph once; every node starts a layer, joins one, or is a view."""

    def __init__(self, graph: onnx.GraphProto, tensors: Mapping[str, _Tensor]) -> None:
        self._graph, self._tensors = graph, tensors
        self._constants = {tensor.name for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}
        self._origin: dict[str, str] = {}
        self._makers: dict[str, int] = {}
        self._drafts: list[_Draft] = []
        self._num_readers = self._count_readers()

    def layers(self) -> Iterable[Layer]:
        """Fuse, in graph order."""
        for node in self._graph.node:
            if node.op_type not in _VIEWS and not self._is_free_concat(node):
                self._place(node)
        return [self._layer(draft) for draft in self._drafts]

    def _count_readers(self) -> Counter[str]:
        """Resolve the views, and count who reads each tensor behind them."""
        readers: Counter[str] = Counter()
        for node in self._graph.node:
            if node.op_type in _VIEWS:
                self._origin[node.output[0]] = self._resolved(node.input[0])
            else:
                readers.update(set(self._inputs(node)))
        readers.update(self._resolved(name) for name in self._outputs)
        return readers

    def _resolved(self, name: str) -> str:
        return self._origin.get(name, name)

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        return [self._resolved(name) for name in node.input if name]

    def _is_free_concat(self, node: onnx.NodeProto) -> bool:
        """Tell whether the makers of what is joined can write into the joined tensor."""
        return node.op_type == "Concat" and all(
            name in self._makers and self._num_readers[name] == 1 for name in self._inputs(node)
        )

    def _place(self, node: onnx.NodeProto) -> None:
        inputs = self._inputs(node)
        host = self._host(node, inputs)
        if host is None:
            outputs = list(node.output)
            draft = _Draft([], {}, {}, outputs[0], _flops(node, inputs, self._tensors), outputs[1:])
            self._drafts.append(draft)
            host = len(self._drafts) - 1
        draft = self._drafts[host]
        draft.nodes.append(node)
        for name in inputs:
            if name in self._constants:
                draft.weights[name] = None
            elif self._makers.get(name) != host:
                draft.reads[name] = None
        draft.output = node.output[0]
        self._makers.update(dict.fromkeys(node.output, host))

    def _host(self, node: onnx.NodeProto, inputs: Sequence[str]) -> int | None:
        """Find the layer that this node can join: that of its latest input, if nobody else reads it."""
        made = [name for name in inputs if name in self._makers]
        if not made:
            return None
        latest = max(made, key=self._makers.__getitem__)
        draft = self._drafts[self._makers[latest]]
        is_copy = draft.nodes[0].op_type in _POINTWISE  # which can shuffle while it copies
        fits = node.op_type in _POINTWISE or (is_copy and node.op_type in _SHUFFLES)
        is_alone = self._num_readers[latest] == 1 and not draft.more_outputs
        return self._makers[latest] if fits and is_alone else None

    def _layer(self, draft: _Draft) -> Layer:
        read = [self._tensors[name] for name in draft.reads]
        written = [self._tensors[name] for name in (draft.output, *draft.more_outputs) if name]
        return Layer(
            name=draft.nodes[0].name or draft.output,
            kind=draft.nodes[0].op_type,
            nodes=tuple(node.name for node in draft.nodes),
            flops=draft.flops,
            read_values=_num_values(read),
            written_values=_num_values(written),
            weight_values=sum(self._tensors[name].size for name in draft.weights),
            fixed_bytes=sum(t.size * t.item_bytes for t in (*read, *written) if t.item_bytes),
        )


def _num_values(tensors: Iterable[_Tensor]) -> int:
    return sum(tensor.size for tensor in tensors if tensor.item_bytes is None)


def _flops(node: onnx.NodeProto, inputs: Sequence[str], tensors: Mapping[str, _Tensor]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose"):
        return 0
    # A convolution uses its kernel once for each pixel it writes, a transposed one for each that it reads.
    pixels = tensors[node.output[0] if node.op_type == "Conv" else inputs[0]]
    return 2 * pixels.size * prod(tensors[inputs[1]].shape[1:])


def _tensors(model: onnx.ModelProto, batch: int) -> tuple[dict[str, _Tensor], int]:
    """Infer shape and type of every tensor at a batch size; also return the batch that there is."""
    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    graph = concrete.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if not first.HasField("dim_value"):
            first.dim_value = batch
    graph = onnx.shape_inference.infer_shapes(concrete).graph
    found: dict[str, _Tensor] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = dims_of(value)
        if all(isinstance(size, int) for size in shape):
            item_bytes = _fixed_bytes(value.type.tensor_type.elem_type)
            found[value.name] = _Tensor(tuple(map(int, shape)), item_bytes)
    for tensor in graph.initializer:
        found[tensor.name] = _Tensor(tuple(tensor.dims), None)
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name and name not in found:
                raise BenchmarkError(
                    f"the shape of tensor {name!r} cannot be inferred",
                    hint="export the artefact again: esnet-export to-onnx WEIGHTS",
                )
    return found, found[graph.input[0].name].shape[0]


def _fixed_bytes(element_type: int) -> int | None:
    if element_type in _FLOATS:
        return None
    return onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize
