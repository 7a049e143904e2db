"""Put FP16 into the graph: weights, activations and float edges become half; bytes stay bytes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto

from export.errors import GraphError
from export.graph.editor import GraphEditor

LARGEST_HALF = float(np.finfo(np.float16).max)
_TO_FLOAT = "/to float"


def convert_to_half(model: onnx.ModelProto, *, islands: Collection[str] = ()) -> onnx.ModelProto:
    """Make every float32 tensor of the graph float16, but for the islands.

    Precision is in the graph, not in a builder flag, so that no engine can fall back to FP32 unnoticed. A
    uint8 input is cast straight to half, which holds 0 to 255 exactly.

    Args:
        model: Float32 graph without Constant nodes. Not modified.
        islands: Names of nodes that go on computing in float32. What passes between two of them stays
            float32; the casts stand around them.

    Raises:
        GraphError: A constant beyond the range of half (65504), or an island that is no node.
    """
    editor = GraphEditor(model)
    if strays := sorted(set(islands) - {node.name for node in editor.nodes}):
        raise GraphError(f"the graph has no node {strays[0]!r} to keep in FP32")
    floats = _float_tensors(model)
    kept = [node for node in editor.nodes if node.name in islands]
    for node in kept:
        _make_island(editor, node, floats, {n.name for n in kept})
    own = {name for node in kept for name in node.input}
    read = {name for node in editor.nodes for name in node.input} - own
    for tensor in editor.constants():
        if tensor.data_type == TensorProto.FLOAT and tensor.name in read:
            array = editor.array(tensor.name)
            largest = float(np.abs(array).max(initial=0.0))
            if not largest <= LARGEST_HALF:
                raise GraphError(
                    f"constant {tensor.name!r} reaches {largest:.4g}, beyond half's {LARGEST_HALF:.0f}",
                    hint="export without --fp16",
                )
            editor.set_array(tensor.name, array.astype(np.float16))
    for node in editor.of_type("Cast"):
        for entry in node.attribute:
            if (
                entry.name == "to"
                and entry.i == TensorProto.FLOAT
                and not node.name.endswith(_TO_FLOAT)
                and node.name not in islands
            ):
                entry.i = TensorProto.FLOAT16
    for value in (*editor.graph.input, *editor.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return editor.finish()


def _make_island(
    editor: GraphEditor, node: onnx.NodeProto, floats: Collection[str], kept: Collection[str]
) -> None:
    """Give a node its own float32 constants, and casts where it meets what becomes half."""
    for position, name in enumerate(node.input):
        if name in editor.constant_names() and name in floats:
            node.input[position] = editor.add_array(f"{name}/fp32", editor.array(name))
        elif name in floats:
            maker = editor.producer(name)
            if maker is None or maker.name not in kept:
                node.input[position] = editor.add(
                    "Cast", f"{node.name}/{position}{_TO_FLOAT}", [name], to=TensorProto.FLOAT
                )
    for position, name in enumerate(node.output):
        readers = [reader for reader in editor.consumers(name) if reader.name not in kept]
        if name not in floats or not (readers or editor.is_output(name)):
            continue
        inner = f"{name}/fp32"
        node.output[position] = inner
        for reader in editor.consumers(name):
            if reader.name in kept:
                reader.input[list(reader.input).index(name)] = inner
        editor.add(
            "Cast", f"{node.name}/{position}/to half", [inner], output=name, to=TensorProto.FLOAT16
        )


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Name every float32 tensor of the graph, constants and edges included."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    edges = (*inferred.value_info, *inferred.input, *inferred.output)
    names = {v.name for v in edges if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in inferred.initializer if t.data_type == TensorProto.FLOAT}
