"""Fold every BatchNormalization into its convolution, also through a Concat."""

from __future__ import annotations

import numpy as np
import onnx

from export.graph.editor import GraphEditor, attributes

Affine = tuple[np.ndarray, np.ndarray]
"""Scale and shift of a BN, y = scale * x + shift, float64 (C,) each."""


def fold_batchnorm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove all BatchNormalization nodes exactly, and move every ReLU directly after its Conv or Add.

    A BN after a Conv or ConvTranspose scales its weights and bias. A BN after a Concat is split among the
    inputs: a convolution takes its part, any other input gets a per-channel Mul and Add. ESNet's max-pool is
    such an input: its scale may be negative, so it cannot move before the max. A ReLU after that Concat moves
    before it. A BN module shared by several branches is folded into each. A tensor that cannot absorb a BN,
    or has other readers, also gets a Mul and Add.

    Args:
        model: Inference graph with constant BN statistics, float32. Not modified.

    Raises:
        GraphError: The constants of a BN, or of its convolution, are computed at run time.
    """
    editor = GraphEditor(model)
    for norm in editor.of_type("BatchNormalization"):
        affine = _affine_of(editor, norm)
        editor.remove(norm)
        folded = _apply_affine(editor, norm.input[0], norm, affine)
        editor.rewire(norm.output[0], folded)
        if editor.is_output(norm.output[0]):
            editor.rename(folded, norm.output[0])
    for relu in editor.of_type("Relu"):
        _move_before_concat(editor, relu)
    return editor.finish()


def _affine_of(editor: GraphEditor, norm: onnx.NodeProto) -> Affine:
    gamma, beta, mean, variance = (editor.array(n).astype(np.float64) for n in norm.input[1:5])
    scale = gamma / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
    return scale, beta - mean * scale


def _apply_affine(editor: GraphEditor, tensor: str, norm: onnx.NodeProto, affine: Affine) -> str:
    """Compute ``scale * tensor + shift`` with as few new nodes as possible, and return its tensor."""
    source = editor.producer(tensor)
    if source is not None and not editor.consumers(tensor) and not editor.is_output(tensor):
        if source.op_type in ("Conv", "ConvTranspose") and attributes(source).get("group", 1) == 1:
            _fold_into_conv(editor, source, affine)
            return tensor
        channels = _channels_of_parts(editor, source, len(affine[0]))
        if channels is not None:
            return _split_over_concat(editor, source, channels, norm, affine)
    name = f"{norm.name}.{source.name.rsplit('.', 1)[-1]}" if source is not None else norm.name
    scale, shift = (values.reshape(-1, 1, 1).astype(np.float32) for values in affine)
    factor = editor.add_array(f"{name}.scale", scale)
    offset = editor.add_array(f"{name}.shift", shift)
    product = editor.add("Mul", f"{name}.mul", [tensor, factor])
    return editor.add("Add", f"{name}.add", [product, offset])


def _fold_into_conv(editor: GraphEditor, conv: onnx.NodeProto, affine: Affine) -> None:
    scale, shift = affine
    weight = editor.array(conv.input[1]).astype(np.float64)
    has_bias = len(conv.input) > 2 and conv.input[2] != ""
    bias = editor.array(conv.input[2]).astype(np.float64) if has_bias else np.zeros_like(scale)
    column = (-1, 1, 1, 1) if conv.op_type == "Conv" else (1, -1, 1, 1)
    weight = (weight * scale.reshape(column)).astype(np.float32)
    bias_name = conv.input[2] if has_bias else f"{conv.name}.bias"
    editor.set_node_array(conv, 1, conv.input[1], weight)
    editor.set_node_array(conv, 2, bias_name, (bias * scale + shift).astype(np.float32))


def _split_over_concat(
    editor: GraphEditor,
    concat: onnx.NodeProto,
    channels: list[int],
    norm: onnx.NodeProto,
    affine: Affine,
) -> str:
    scale, shift = affine
    editor.remove(concat)
    bounds = np.cumsum([0, *channels])
    parts = [
        _apply_affine(editor, name, norm, (scale[low:high], shift[low:high]))
        for name, low, high in zip(concat.input, bounds[:-1], bounds[1:], strict=True)
    ]
    return editor.add("Concat", concat.name, parts, output=concat.output[0], axis=1)


def _channels_of_parts(editor: GraphEditor, node: onnx.NodeProto, total: int) -> list[int] | None:
    """Count the channels of each input of a Concat; ``None`` if unknown, or for another node."""
    if node.op_type != "Concat" or attributes(node).get("axis", 0) != 1:
        return None
    channels = [_channels_of_conv(editor, name) for name in node.input]
    if channels.count(0) > 1 or len(set(node.input)) < len(channels):
        return None
    rest = total - sum(channels)
    return [count or rest for count in channels]


def _channels_of_conv(editor: GraphEditor, tensor: str) -> int:
    """Count the channels of a convolution's output; 0 for other tensors."""
    node = editor.producer(tensor)
    if node is None or node.op_type not in ("Conv", "ConvTranspose"):
        return 0
    # Conv (Cout, Cin, k, k), ConvTranspose (Cin, Cout, k, k)
    shape = editor.array(node.input[1]).shape
    return int(shape[0] if node.op_type == "Conv" else shape[1] * attributes(node).get("group", 1))


def _move_before_concat(editor: GraphEditor, relu: onnx.NodeProto) -> None:
    concat = editor.producer(relu.input[0])
    if concat is None or concat.op_type != "Concat":
        return
    if editor.sole_reader(concat.output[0]) is not relu:
        return
    for position, name in enumerate(list(concat.input)):
        source = editor.producer(name)
        stem = source.name if source is not None else f"{concat.name}.{position}"
        concat.input[position] = editor.add("Relu", f"{stem}.relu", [name])
    editor.remove(relu)
    editor.rename(concat.output[0], relu.output[0])
