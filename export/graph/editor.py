"""An indexed working copy of a model, on which the transforms of this folder do their rewriting."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.errors import GraphError

T = TypeVar("T")


class GraphEditor:
    """A private copy of a model's graph; ``finish`` turns it back into a checked model.

    Names that a transform gives to what it adds are wishes: a taken one gets a mark behind it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.nodes = list(self.graph.node)
        self._arrays = {tensor.name: tensor for tensor in self.graph.initializer}

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return opset_of(self.model)

    def single_input(self) -> onnx.ValueInfoProto:
        """Get the graph's one input, or raise ``GraphError``."""
        inputs = [value for value in self.graph.input if value.name not in self._arrays]
        return _only(inputs, "input")

    def single_output(self) -> onnx.ValueInfoProto:
        """Get the graph's one output, or raise ``GraphError``."""
        return _only(list(self.graph.output), "output")

    def of_type(self, *ops: str) -> list[onnx.NodeProto]:
        """List the nodes of these operator types, in graph order."""
        return [node for node in self.nodes if node.op_type in ops]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Get the node that makes this tensor; ``None`` for graph inputs and constants."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """List the nodes that read this tensor."""
        return [node for node in self.nodes if tensor in node.input]

    def is_output(self, tensor: str) -> bool:
        """Tell whether this tensor is an output of the graph."""
        return any(value.name == tensor for value in self.graph.output)

    def sole_reader(self, tensor: str) -> onnx.NodeProto | None:
        """Get the node that alone sees this tensor; ``None`` for several, and for an output of the graph."""
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and not self.is_output(tensor) else None

    def array(self, name: str) -> np.ndarray:
        """Read a constant, or raise ``GraphError`` when the tensor is computed at run time."""
        if name not in self._arrays:
            raise GraphError(f"{name!r} must be a constant of the graph, but a node computes it")
        return numpy_helper.to_array(self._arrays[name])

    def constants(self) -> list[onnx.TensorProto]:
        """List the constants of the graph."""
        return list(self._arrays.values())

    def constant_names(self) -> Collection[str]:
        """Name the constants of the graph."""
        return self._arrays.keys()

    def add_array(self, name: str, value: np.ndarray) -> str:
        """Add a constant and return its name."""
        return self.set_array(_fresh(name, self._tensors()), value)

    def set_array(self, name: str, value: np.ndarray) -> str:
        """Add or replace a constant and return its name."""
        self._arrays[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def set_node_array(
        self, node: onnx.NodeProto, position: int, name: str, value: np.ndarray
    ) -> None:
        """Give a node its own constant as input ``position``, leaving other readers of the old one alone."""
        while len(node.input) <= position:
            node.input.append("")
        shared = any(other is not node and name in other.input for other in self.nodes)
        node.input[position] = (self.add_array if shared else self.set_array)(name, value)

    def add(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        *,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node and return the tensor it makes, ``output`` or one named after the node."""
        name = _fresh(name, {node.name for node in self.nodes})
        tensor = output or _fresh(f"{name}/out", self._tensors())
        self.nodes.append(helper.make_node(op, inputs, [tensor], name=name, **attributes))
        return tensor

    def _tensors(self) -> set[str]:
        edges = {value.name for value in (*self.graph.input, *self.graph.output)}
        inner = {tensor for node in self.nodes for tensor in (*node.input, *node.output)}
        return edges | inner | self._arrays.keys()

    def remove(self, *nodes: onnx.NodeProto) -> None:
        """Drop nodes; what they made must have been rewired."""
        dropped = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in dropped]

    def rewire(self, old: str, new: str) -> None:
        """Let every reader of ``old`` read ``new``, but for the node that makes ``new``."""
        for node in self.nodes:
            if new in node.output:
                continue
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new

    def rename(self, old: str, new: str) -> None:
        """Rename a computed tensor at its producer and all its readers."""
        self.rewire(old, new)
        for node in self.nodes:
            for position, name in enumerate(node.output):
                if name == old:
                    node.output[position] = new

    def finish(self) -> onnx.ModelProto:
        """Sort the nodes, drop what no output needs, and return the model, checked."""
        live = self._sorted_live_nodes()
        used = {name for node in live for name in node.input}
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(live)
        self.graph.initializer.extend(self._arrays[name] for name in self._arrays if name in used)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _sorted_live_nodes(self) -> list[onnx.NodeProto]:
        makers = {tensor: node for node in self.nodes for tensor in node.output}
        order: list[onnx.NodeProto] = []
        seen: set[int] = set()
        stack = [
            (makers[value.name], False)
            for value in reversed(self.graph.output)
            if value.name in makers
        ]
        while stack:
            node, inputs_done = stack.pop()
            if inputs_done:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend(
                    (makers[name], False) for name in reversed(node.input) if name in makers
                )
        return order


def attribute(node: onnx.NodeProto, name: str, default: T) -> T:
    """Read a node's attribute; ``default``, of the attribute's own type, when it is not set."""
    value: T = next(
        (helper.get_attribute_value(a) for a in node.attribute if a.name == name), default
    )
    return value


def opset_of(model: onnx.ModelProto) -> int:
    """Get the version of the default operator set, 0 when the model does not import it."""
    versions = (e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    return max(versions, default=0)


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Read a tensor's shape; a symbolic axis is its name, an unknown one ``"?"``."""
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    ]


def op_counts(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """Count nodes by operator type, most frequent first."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _fresh(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _only(values: list[onnx.ValueInfoProto], what: str) -> onnx.ValueInfoProto:
    if len(values) != 1:
        names = [value.name for value in values]
        raise GraphError(f"the graph must have one {what}, got {len(values)}: {names}")
    return values[0]
