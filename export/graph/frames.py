"""uint8 NHWC input with the normalisation inside the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.errors import GraphError
from export.graph.editor import GraphEditor, attributes, dims_of
from runtime.artefact.card import FRAMES


def attach_frames_input(
    model: onnx.ModelProto, *, mean: Sequence[float], std: Sequence[float]
) -> onnx.ModelProto:
    """Replace the normalised float input by ``frames``, uint8 (N, H, W, 3).

    The Cast comes before the Transpose, since TensorRT allows uint8 only at network inputs and outputs. The
    scale 1 / (255 std) is folded into the convolutions that read the input and into the affine after the
    max-pool. A mean cannot be folded exactly, because the convolution pads with zeros after normalisation; it
    stays as one Sub.

    Args:
        model: Graph with one input (N, 3, H, W) float32, read by convolutions and max-pools only; BN folded.
            Not modified.
        mean: RGB mean, 0-1 scale.
        std: RGB standard deviation, 0-1 scale, above 0.

    Raises:
        GraphError: The input has another shape or reader, or ``std`` is not positive.
    """
    if min(std) <= 0:
        raise GraphError(f"std must be above 0 in every channel, got {tuple(std)}")
    editor = GraphEditor(model)
    tensor = editor.single_input()
    dims = dims_of(tensor)
    if len(dims) != 4 or dims[1] != 3:
        raise GraphError(f"the input must be (N, 3, H, W), got {dims}")
    scale = 1.0 / (255.0 * np.asarray(std, np.float64))
    for reader in editor.consumers(tensor.name):
        _fold_scale(editor, reader, scale)
    x = editor.add("Cast", "input.cast", [FRAMES], to=TensorProto.FLOAT)
    if any(mean):
        offset = np.asarray(mean, np.float64) * 255.0
        offset_name = editor.add_array("input.mean_255", np.float32(offset))
        x = editor.add("Sub", "input.mean", [x, offset_name])
    x = editor.add("Transpose", "input.nchw", [x], perm=[0, 3, 1, 2])
    editor.rewire(tensor.name, x)
    dims_NHWC = [dims[0], *dims[2:], 3]
    tensor.CopyFrom(helper.make_tensor_value_info(FRAMES, TensorProto.UINT8, dims_NHWC))
    return editor.finish()


def _fold_scale(editor: GraphEditor, reader: onnx.NodeProto, scale: np.ndarray) -> None:
    if reader.op_type == "Conv" and attributes(reader).get("group", 1) == 1:
        weight = editor.array(reader.input[1]) * scale.reshape(1, -1, 1, 1)
        editor.set_node_array(reader, 1, reader.input[1], weight.astype(np.float32))
        return
    if reader.op_type != "MaxPool":
        raise GraphError(
            f"the input feeds {reader.op_type} {reader.name!r}; only MaxPool and ungrouped Conv are supported"
        )
    pooled, column = reader.output[0], scale.reshape(-1, 1, 1)  # max(s x) = s max(x) for s > 0
    affine = editor.sole_reader(pooled)
    if affine is not None and affine.op_type == "Mul":
        factor = editor.array(affine.input[1]).astype(np.float64) * column
        editor.set_node_array(affine, 1, affine.input[1], factor.astype(np.float32))
        return
    factor_name = editor.add_array(f"{reader.name}.scale", column.astype(np.float32))
    editor.rewire(pooled, editor.add("Mul", f"{reader.name}.mul", [pooled, factor_name]))
