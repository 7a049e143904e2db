"""Put FP16 into the graph: weights, activations and float edges become half; bytes stay bytes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from export.errors import GraphError
from export.graph.editor import GraphEditor

_LARGEST = float(np.finfo(np.float16).max)


def convert_to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every float32 tensor of the graph float16.

    Precision is in the graph, not in a builder flag, so that no engine can fall back to FP32 unnoticed. A
    uint8 input is cast straight to half, which holds 0 to 255 exactly.

    Args:
        model: Float32 graph without Constant nodes. Not modified.

    Raises:
        GraphError: A constant beyond the range of half (65504).
    """
    editor = GraphEditor(model)
    for tensor in editor.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = editor.array(tensor.name)
            largest = float(np.abs(array).max(initial=0.0))
            if not largest <= _LARGEST:
                raise GraphError(
                    f"constant {tensor.name!r} reaches {largest:.4g}, beyond half's {_LARGEST:.0f}",
                    hint="export without --fp16",
                )
            editor.set_array(tensor.name, array.astype(np.float16))
    for node in editor.of_type("Cast"):
        for entry in node.attribute:
            if entry.name == "to" and entry.i == TensorProto.FLOAT:
                entry.i = TensorProto.FLOAT16
    for value in (*editor.graph.input, *editor.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return editor.finish()
