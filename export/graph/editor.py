"""Working copy of a model that the transforms of this folder edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.errors import GraphError


class GraphEditor:
    """Editable copy of a model's graph; ``finish`` returns it as a checked model.

    ``nodes`` lists its nodes, ``arrays`` holds its constants by name.
    If the name of a new node or constant is already used, an apostrophe is appended.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.nodes = list(self.graph.node)
        self.arrays = {tensor.name: tensor for tensor in self.graph.initializer}

    def single_input(self) -> onnx.ValueInfoProto:
        """Get the only input of the graph; raise ``GraphError`` for several."""
        inputs = [value for value in self.graph.input if value.name not in self.arrays]
        return _only(inputs, "input")

    def single_output(self) -> onnx.ValueInfoProto:
        """Get the only output of the graph; raise ``GraphError`` for several."""
        return _only(list(self.graph.output), "output")

    def of_type(self, *ops: str) -> list[onnx.NodeProto]:
        """List the nodes of these operator types, in graph order."""
        return [node for node in self.nodes if node.op_type in ops]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Get the node that computes this tensor; ``None`` for graph inputs and constants."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """List the nodes that read this tensor."""
        return [node for node in self.nodes if tensor in node.input]

    def is_output(self, tensor: str) -> bool:
        """Return True if this tensor is an output of the graph."""
        return any(value.name == tensor for value in self.graph.output)

    def sole_reader(self, tensor: str) -> onnx.NodeProto | None:
        """Get the only reader of this tensor; ``None`` for several readers or an output of the graph."""
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and not self.is_output(tensor) else None

    def array(self, name: str) -> np.ndarray:
        """Read a constant; raise ``GraphError`` if the tensor is computed at run time."""
        if name not in self.arrays:
            raise GraphError(f"{name!r} must be a constant of the graph, but a node computes it")
        return numpy_helper.to_array(self.arrays[name])

    def add_array(self, name: str, value: np.ndarray) -> str:
        """Add a constant and return its name."""
        return self.set_array(_unused(name, self._tensors()), value)

    def set_array(self, name: str, value: np.ndarray) -> str:
        """Add or replace a constant and return its name."""
        self.arrays[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def set_node_array(
        self, node: onnx.NodeProto, position: int, name: str, value: np.ndarray
    ) -> None:
        """Set a constant as input ``position`` of a node; other readers of ``name`` keep the old value."""
        while len(node.input) <= position:
            node.input.append("")
        shared = any(other is not node and name in other.input for other in self.nodes)
        node.input[position] = (self.add_array if shared else self.set_array)(name, value)

    def add(
        self, op: str, name: str, inputs: Sequence[str], *, output: str = "", **attributes: Any
    ) -> str:
        """Append a node and return the name of its output, by default ``<name>/out``."""
        name = _unused(name, {node.name for node in self.nodes})
        tensor = output or _unused(f"{name}/out", self._tensors())
        self.nodes.append(helper.make_node(op, inputs, [tensor], name=name, **attributes))
        return tensor

    def _tensors(self) -> set[str]:
        edges = {value.name for value in (*self.graph.input, *self.graph.output)}
        inner = {tensor for node in self.nodes for tensor in (*node.input, *node.output)}
        return edges | inner | self.arrays.keys()

    def remove(self, node: onnx.NodeProto) -> None:
        """Remove a node; readers of its outputs must be rewired."""
        self.nodes = [other for other in self.nodes if other is not node]

    def rewire(self, old: str, new: str) -> None:
        """Make every reader of ``old`` read ``new``, except the node that computes ``new``."""
        for node in self.nodes:
            if new in node.output:
                continue
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new

    def rename(self, old: str, new: str) -> None:
        """Rename a computed tensor in its producer and in all its readers."""
        self.rewire(old, new)
        for node in self.nodes:
            for position, name in enumerate(node.output):
                if name == old:
                    node.output[position] = new

    def finish(self) -> onnx.ModelProto:
        """Sort the nodes, drop nodes and constants that no output needs, and return the checked model."""
        live = self._sorted_live_nodes()
        used = {name for node in live for name in node.input}
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(live)
        self.graph.initializer.extend(self.arrays[name] for name in self.arrays if name in used)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _sorted_live_nodes(self) -> list[onnx.NodeProto]:
        makers = {tensor: node for node in self.nodes for tensor in node.output}
        order: list[onnx.NodeProto] = []
        seen: set[int] = set()
        names = [value.name for value in reversed(self.graph.output)]
        stack = [(makers[name], False) for name in names if name in makers]
        while stack:
            node, inputs_done = stack.pop()
            if inputs_done:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack += [(makers[name], False) for name in reversed(node.input) if name in makers]
        return order


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Get the attributes of a node by name; those that are not set are missing."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def opset_of(model: onnx.ModelProto) -> int:
    """Get the version of the default operator set; 0 if the model does not import it."""
    versions = (e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    return max(versions, default=0)


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Get a tensor's shape; a symbolic axis is its name, an unknown one ``"?"``."""
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    ]


def macs_of(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int:
    """Count the multiply-accumulates of a convolution, padding included; other nodes have none.

    ``shapes`` has those of its input, weights and output.
    """
    if node.op_type not in ("Conv", "ConvTranspose"):
        return 0
    # A convolution applies its kernel once per output pixel, a transposed one once per input pixel.
    pixels = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
    return prod(pixels) * prod(shapes[node.input[1]][1:])


def op_counts(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """Count nodes by operator type, most frequent first."""
    return dict(Counter(sorted(node.op_type for node in nodes)).most_common())


def _unused(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _only(values: list[onnx.ValueInfoProto], what: str) -> onnx.ValueInfoProto:
    if len(values) != 1:
        names = [value.name for value in values]
        raise GraphError(f"the graph must have one {what}, got {len(values)}: {names}")
    return values[0]
