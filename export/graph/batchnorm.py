"""Fold every BatchNormalization away: into its convolution, and through a Concat into what feeds it."""

from __future__ import annotations

import numpy as np
import onnx

from export.errors import GraphError
from export.graph.editor import GraphEditor, attribute


def fold_batchnorm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove all BatchNormalization nodes, exactly, and put every ReLU directly behind what it clips.

    A BN behind a Conv or ConvTranspose scales its weights and bias. Behind a Concat it is split among the
    inputs: a convolution takes its share, anything else (ESNet's max-pool, whose scale may be negative and so
    cannot move before the max) gets a per-channel Mul and Add. A ReLU behind that Concat then moves in front
    of it. A BN module applied to several branches is folded into each of them.

    Args:
        model: Inference graph with constant BN statistics, float32. Not modified.

    Raises:
        GraphError: A BN whose statistics are computed, or behind a grouped convolution.
    """
    editor = GraphEditor(model)
    for norm in editor.of_type("BatchNormalization"):
        scale, shift = _affine_of(editor, norm)
        editor.remove(norm)
        folded = _apply_affine(editor, norm.input[0], norm, scale, shift)
        editor.rewire(norm.output[0], folded)
        if any(value.name == norm.output[0] for value in editor.graph.output):
            editor.rename(folded, norm.output[0])
    for relu in editor.of_type("Relu"):
        _move_before_concat(editor, relu)
    return editor.finish()


def _affine_of(editor: GraphEditor, norm: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """Read a BN as y = scale * x + shift, float64, one value a channel."""
    gamma, beta, mean, variance = (
        editor.array(name).astype(np.float64) for name in norm.input[1:5]
    )
    epsilon = attribute(norm, "epsilon", 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def _apply_affine(
    editor: GraphEditor, tensor: str, norm: onnx.NodeProto, scale: np.ndarray, shift: np.ndarray
) -> str:
    """Make ``scale * tensor + shift`` with as few nodes as can be, and return its tensor."""
    source = editor.producer(tensor)
    is_private = not editor.consumers(tensor) and all(v.name != tensor for v in editor.graph.output)
    if source is not None and is_private and source.op_type in ("Conv", "ConvTranspose"):
        _fold_into_conv(editor, source, scale, shift)
        return tensor
    if source is not None and is_private and source.op_type == "Concat":
        return _split_over_concat(editor, source, norm, scale, shift)
    name = f"{norm.name}.{source.name.rsplit('.', 1)[-1]}" if source is not None else norm.name
    column = (-1, 1, 1)
    factor = editor.set_array(f"{name}.scale", scale.reshape(column).astype(np.float32))
    offset = editor.set_array(f"{name}.shift", shift.reshape(column).astype(np.float32))
    product = editor.add("Mul", f"{name}.mul", [tensor, factor])
    return editor.add("Add", f"{name}.add", [product, offset])


def _fold_into_conv(
    editor: GraphEditor, conv: onnx.NodeProto, scale: np.ndarray, shift: np.ndarray
) -> None:
    if attribute(conv, "group", 1) != 1:
        raise GraphError(
            f"cannot fold a BatchNormalization into the grouped convolution {conv.name!r}"
        )
    weight = editor.array(conv.input[1]).astype(np.float64)
    has_bias = len(conv.input) > 2 and conv.input[2] != ""
    bias = editor.array(conv.input[2]).astype(np.float64) if has_bias else np.zeros_like(scale)
    column = (-1, 1, 1, 1) if conv.op_type == "Conv" else (1, -1, 1, 1)
    bias_name = conv.input[2] if has_bias else f"{conv.name}.bias"
    editor.set_node_array(
        conv, 1, conv.input[1], (weight * scale.reshape(column)).astype(np.float32)
    )
    editor.set_node_array(conv, 2, bias_name, (bias * scale + shift).astype(np.float32))


def _split_over_concat(
    editor: GraphEditor,
    concat: onnx.NodeProto,
    norm: onnx.NodeProto,
    scale: np.ndarray,
    shift: np.ndarray,
) -> str:
    if attribute(concat, "axis") != 1:
        raise GraphError(
            f"BatchNormalization {norm.name!r} follows a Concat that is not over channels"
        )
    channels = [_channels(editor, name) for name in concat.input]
    if sum(1 for count in channels if count is None) == 1:
        known = sum(count for count in channels if count is not None)
        channels = [len(scale) - known if count is None else count for count in channels]
    if None in channels:
        raise GraphError(f"cannot tell the channel counts of the inputs of Concat {concat.name!r}")
    editor.remove(concat)
    bounds = np.cumsum([0, *channels])
    parts = [
        _apply_affine(editor, name, norm, scale[low:high], shift[low:high])
        for name, low, high in zip(concat.input, bounds[:-1], bounds[1:], strict=True)
    ]
    return editor.add("Concat", concat.name, parts, output=concat.output[0], axis=1)


def _channels(editor: GraphEditor, tensor: str) -> int | None:
    """Count a tensor's channels where a convolution, pool or concat on the way tells them."""
    node = editor.producer(tensor)
    if node is None:
        return None
    if node.op_type == "Conv":
        return int(editor.array(node.input[1]).shape[0])
    if node.op_type == "ConvTranspose":
        return int(editor.array(node.input[1]).shape[1])
    return None


def _move_before_concat(editor: GraphEditor, relu: onnx.NodeProto) -> None:
    concat = editor.producer(relu.input[0])
    if (
        concat is None
        or concat.op_type != "Concat"
        or not editor.is_read_only_by(concat.output[0], relu)
    ):
        return
    for position, name in enumerate(list(concat.input)):
        source = editor.producer(name)
        stem = source.name if source is not None else f"{concat.name}.{position}"
        concat.input[position] = editor.add("Relu", f"{stem}.relu", [name])
    editor.remove(relu)
    editor.rename(concat.output[0], relu.output[0])
