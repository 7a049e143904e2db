"""FP16 in the graph: float weights, activations, inputs and outputs become float16; uint8 stays."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto

from export.errors import GraphError
from export.graph.editor import GraphEditor

LARGEST_HALF = float(np.finfo(np.float16).max)
_TO_FLOAT = "/to float"


def convert_to_half(model: onnx.ModelProto, *, fp32_nodes: Collection[str] = ()) -> onnx.ModelProto:
    """Convert every float32 tensor of the graph to float16, except around ``fp32_nodes``.

    Precision is in the graph, not in a builder flag, so that no runtime can silently use FP32. A uint8 input
    is cast directly to float16, which holds 0 to 255 exactly.

    Args:
        model: float32 graph without Constant nodes. Not modified.
        fp32_nodes: Names of nodes that compute in float32. A tensor between two of them stays float32; casts
            surround them.

    Raises:
        GraphError: A constant exceeds the float16 range (65504), or a name is not a node of the graph.
    """
    editor = GraphEditor(model)
    if unknown := sorted(set(fp32_nodes) - {node.name for node in editor.nodes}):
        raise GraphError(f"the graph has no node {unknown[0]!r} to keep in FP32")
    floats = float_tensors(model)
    kept = [node for node in editor.nodes if node.name in fp32_nodes]
    for node in kept:
        _surround_with_casts(editor, node, floats, fp32_nodes)
    own = {name for node in kept for name in node.input}
    read = {name for node in editor.nodes for name in node.input} - own
    for tensor in list(editor.arrays.values()):
        if tensor.data_type == TensorProto.FLOAT and tensor.name in read:
            editor.set_array(tensor.name, _half_array(tensor.name, editor.array(tensor.name)))
    for node in editor.of_type("Cast"):
        if not node.name.endswith(_TO_FLOAT) and node.name not in fp32_nodes:
            for entry in node.attribute:
                if entry.name == "to" and entry.i == TensorProto.FLOAT:
                    entry.i = TensorProto.FLOAT16
    for value in (*editor.graph.input, *editor.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return editor.finish()


def _half_array(name: str, array: np.ndarray) -> np.ndarray:
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= LARGEST_HALF:  # also true for NaN
        raise GraphError(
            f"constant {name!r} reaches {largest:.4g}, the FP16 limit is {LARGEST_HALF:.0f}",
            hint="export without --fp16",
        )
    return array.astype(np.float16)


def _surround_with_casts(
    editor: GraphEditor, node: onnx.NodeProto, floats: Collection[str], kept: Collection[str]
) -> None:
    """Cast the tensors between an FP32 node and others; give it its own float32 constants."""
    for position, name in enumerate(node.input):
        producer = editor.producer(name)
        if name not in floats or (producer is not None and producer.name in kept):
            continue
        if name in editor.arrays:
            node.input[position] = editor.add_array(f"{name}/fp32", editor.array(name))
        else:
            cast = f"{node.name}/{position}{_TO_FLOAT}"
            node.input[position] = editor.add("Cast", cast, [name], to=TensorProto.FLOAT)
    for position, name in enumerate(node.output):
        readers = editor.consumers(name)
        has_others = editor.is_output(name) or any(reader.name not in kept for reader in readers)
        if name not in floats or not has_others:
            continue
        inner = f"{name}/fp32"
        node.output[position] = inner
        for reader in readers:
            if reader.name in kept:
                reader.input[list(reader.input).index(name)] = inner
        cast = f"{node.name}/{position}/to half"
        editor.add("Cast", cast, [inner], output=name, to=TensorProto.FLOAT16)


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Get the names of all float32 tensors, including constants, inputs and outputs."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    edges = (*inferred.value_info, *inferred.input, *inferred.output)
    names = {v.name for v in edges if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in inferred.initializer if t.data_type == TensorProto.FLOAT}
