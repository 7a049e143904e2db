"""Let the graph take the camera's bytes: uint8 NHWC in, normalisation inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.errors import GraphError
from export.graph.editor import GraphEditor, dims_of

FRAMES_NAME = "frames"


def attach_frames_input(
    model: onnx.ModelProto, *, mean: Sequence[float], std: Sequence[float]
) -> onnx.ModelProto:
    """Replace the normalised float input by ``frames``, uint8 (N, H, W, 3).

    Cast stands first and Transpose after it, since TensorRT allows uint8 at the edge only. The scale
    1 / (255 std) disappears into the convolutions that read the input and into the affine behind the max-pool. A
    mean would not fold exactly, because the convolution pads with zeros after normalisation; it stays as one Sub.

    Args:
        model: Graph whose one input, (N, 3, H, W) float32, feeds convolutions and max-pools only; BN folded.
        mean: RGB mean, 0-1 scale.
        std: RGB deviation, 0-1 scale, above 0.

    Raises:
        GraphError: Another kind of reader, or a deviation that is not positive.
    """
    if min(std) <= 0:
        raise GraphError(f"std must be above 0 in every channel, got {tuple(std)}")
    editor = GraphEditor(model)
    tensor = editor.single_input()
    axis, channels, height, width = dims_of(tensor)
    if channels != 3:
        raise GraphError(f"the input must have 3 channels, got {dims_of(tensor)}")
    scale = 1.0 / (255.0 * np.asarray(std, np.float64))
    for reader in editor.consumers(tensor.name):
        _fold_scale(editor, reader, scale)
    x = editor.add("Cast", "input.cast", [FRAMES_NAME], to=TensorProto.FLOAT)
    if any(mean):
        offset = np.asarray(mean, np.float64) * 255.0
        x = editor.add(
            "Sub", "input.mean", [x, editor.set_array("input.mean_255", np.float32(offset))]
        )
    x = editor.add("Transpose", "input.nchw", [x], perm=[0, 3, 1, 2])
    editor.rewire(tensor.name, x)
    frames = helper.make_tensor_value_info(FRAMES_NAME, TensorProto.UINT8, [axis, height, width, 3])
    tensor.CopyFrom(frames)
    return editor.finish()


def _fold_scale(editor: GraphEditor, reader: onnx.NodeProto, scale: np.ndarray) -> None:
    if reader.op_type == "Conv":
        weight = editor.array(reader.input[1]) * scale.reshape(1, -1, 1, 1)
        editor.set_node_array(reader, 1, reader.input[1], weight.astype(np.float32))
        return
    if reader.op_type != "MaxPool":
        raise GraphError(
            f"the input feeds {reader.op_type} {reader.name!r}; only Conv and MaxPool can take a scale"
        )
    readers = editor.consumers(reader.output[0])  # max(s x) = s max(x) for s > 0
    if len(readers) == 1 and readers[0].op_type == "Mul":
        factor = editor.array(readers[0].input[1]).astype(np.float64) * scale.reshape(-1, 1, 1)
        editor.set_node_array(readers[0], 1, readers[0].input[1], factor.astype(np.float32))
        return
    pooled = reader.output[0]
    factor_name = editor.set_array(f"{reader.name}.scale", np.float32(scale).reshape(-1, 1, 1))
    scaled = editor.add("Mul", f"{reader.name}.mul", [pooled, factor_name])
    for node in readers:
        position = list(node.input).index(pooled)
        node.input[position] = scaled
