"""Head of the graph: uint8 class indices instead of logits, and padding classes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.errors import GraphError
from export.graph.editor import GraphEditor, attributes, dims_of, opset_of
from runtime.artefact.card import CONFIDENCE, LABELS

_PADDING_LOGIT = -1e4
"""Logit of a padding class: far below real logits, and finite in float16."""


def pad_classes(model: onnx.ModelProto, *, multiple: int = 8, at_least: int = 1) -> onnx.ModelProto:
    """Add padding classes to the head that the argmax never selects.

    TensorRT computes channels in groups of 8, and needs an extra kernel to slice 19 or 11 classes out of a
    padded head. Padding classes have weights 0 and a bias of -1e4. A ReLU at the end of the head becomes a
    Max with 0 for real classes and -1e4 for padding classes.

    Args:
        model: Graph whose logits (N, K, H, W) come from a ConvTranspose, or a ReLU after one; BN folded.
            Not modified.
        multiple: The number of classes is padded to a multiple of this.
        at_least: Smallest number of classes.

    Raises:
        GraphError: The logits have another rank, or come from another operator.
    """
    editor = GraphEditor(model)
    output = editor.single_output()
    dims = dims_of(output)
    if len(dims) != 4 or not isinstance(dims[1], int):
        raise GraphError(f"pad_classes needs logits (N, K, H, W) with K fixed, got {dims}")
    num_classes = dims[1]
    added = padded_width(num_classes, multiple, at_least) - num_classes
    if added == 0:
        return editor.finish()
    last = editor.producer(output.name)
    deconv = editor.producer(last.input[0]) if last is not None and last.op_type == "Relu" else last
    is_deconv = deconv is not None and deconv.op_type == "ConvTranspose"
    if last is None or deconv is None or not is_deconv or len(deconv.input) != 3:
        raise GraphError(
            "pad_classes needs logits from a ConvTranspose with a bias, or a ReLU after one"
        )
    weight, bias = editor.array(deconv.input[1]), editor.array(deconv.input[2])
    weight = np.pad(weight, ((0, 0), (0, added), (0, 0), (0, 0)))
    bias = np.pad(bias, (0, added), constant_values=_PADDING_LOGIT)
    editor.set_node_array(deconv, 1, deconv.input[1], weight)
    editor.set_node_array(deconv, 2, deconv.input[2], bias)
    if last is not deconv:
        floor = np.zeros((1, num_classes + added, 1, 1), np.float32)
        floor[:, num_classes:] = _PADDING_LOGIT
        editor.remove(last)
        floor_name = editor.add_array(f"{last.name}.floor", floor)
        editor.add("Max", last.name, [deconv.output[0], floor_name], output=output.name)
    dims[1] = num_classes + added
    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, dims))
    return editor.finish()


def without_padding_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Set the constant logit of padding classes to 0, so that activations are those of the network."""
    editor = GraphEditor(model)
    for name in editor.arrays:
        array = editor.array(name)
        if (is_padding := array == _PADDING_LOGIT).any():
            editor.set_array(name, np.where(is_padding, array.dtype.type(0), array))
    return editor.finish()


def padded_width(num_classes: int, multiple: int, at_least: int) -> int:
    """Round the number of classes up to a multiple of ``multiple``, and to at least ``at_least``."""
    return max(num_classes + -num_classes % multiple, at_least)


def append_labels(model: onnx.ModelProto, *, confidence: bool = False) -> onnx.ModelProto:
    """Replace the logits by class indices: the output has 1 byte per pixel instead of 4 K.

    If a depth-to-space shuffle produces the logits, the argmax is taken on its four groups of channels, and
    only the class map is shuffled. Class indices are cast from int64 through float to uint8, the only way
    that every TensorRT accepts.

    Args:
        model: Graph with one output, logits (N, K, H, W) float32; K, H, W fixed, K at most 256. Not
            modified.
        confidence: True adds a second output, the top softmax probability x 255, rounded.

    Returns:
        A model with outputs ``labels`` and, if requested, ``confidence``, both uint8 (N, H, W). Ties go to
        the lowest index.

    Raises:
        GraphError: The logits have another rank or a dynamic size, or K is above 256.
    """
    editor = GraphEditor(model)
    logits = editor.single_output()
    dims = dims_of(logits)
    sizes = [size for size in dims[1:] if isinstance(size, int)]
    if len(dims) != 4 or len(sizes) != 3 or sizes[0] > 256:
        raise GraphError(
            f"append_labels needs logits (N, K, H, W) of fixed size with K up to 256, got {dims}",
            hint="export with --output logits",
        )
    height, width = sizes[1:]
    scores, axis, flat_shape = _class_scores(editor, logits.name, sizes)
    del editor.graph.output[:]
    classes = editor.add("ArgMax", "head.argmax", [scores], axis=axis, keepdims=0)
    maps = {LABELS: editor.add("Cast", "head.labels_float", [classes], to=TensorProto.FLOAT)}
    if confidence:
        maps[CONFIDENCE] = _top_probability(editor, scores, axis)
    for name, tensor in maps.items():
        if flat_shape is not None:
            shuffle = f"head.{name}_shuffle"
            tensor = editor.add("DepthToSpace", shuffle, [tensor], blocksize=2, mode="DCR")
            tensor = editor.add("Reshape", f"head.{name}_flat", [tensor, flat_shape])
        editor.add("Cast", f"head.{name}", [tensor], output=name, to=TensorProto.UINT8)
        info = helper.make_tensor_value_info(name, TensorProto.UINT8, [dims[0], height, width])
        editor.graph.output.append(info)
    return editor.finish()


def _class_scores(
    editor: GraphEditor, logits: str, sizes: list[int]
) -> tuple[str, int, str | None]:
    """Get the scores, their class axis, and the flat shape of a shuffled map; ``None`` without a shuffle."""
    shuffle = editor.producer(logits)
    if shuffle is None or shuffle.op_type != "DepthToSpace":
        return logits, 1, None
    if (
        attributes(shuffle).get("blocksize", 1) != 2
        or attributes(shuffle).get("mode", b"DCR") != b"DCR"
    ):
        raise GraphError(f"the shuffle {shuffle.name!r} must be DCR with block size 2")
    editor.remove(shuffle)
    classes, height, width = sizes
    flat_shape = editor.add_array("head.flat", np.array([0, height, width], np.int64))
    groups = np.array([0, 4, classes, height // 2, width // 2], np.int64)
    shape = editor.add_array("head.groups", groups)
    return editor.add("Reshape", "head.grouped", [shuffle.input[0], shape]), 2, flat_shape


def _top_probability(editor: GraphEditor, scores: str, axis: int) -> str:
    """Compute 255 x top softmax probability + 0.5, since the cast to uint8 truncates."""
    softmax = editor.add("Softmax", "head.softmax", [scores], axis=axis)
    if opset_of(editor.model) >= 18:
        axes = editor.add_array("head.axes", np.array([axis], np.int64))
        top = editor.add("ReduceMax", "head.top", [softmax, axes], keepdims=0)
    else:
        top = editor.add("ReduceMax", "head.top", [softmax], axes=[axis], keepdims=0)
    full = editor.add_array("head.full", np.float32(255.0).reshape(1))
    half = editor.add_array("head.half", np.float32(0.5).reshape(1))
    return editor.add("Add", "head.round", [editor.add("Mul", "head.scale", [top, full]), half])
