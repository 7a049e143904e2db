"""8-bit class scores: the argmax of an INT8 artefact for CPUs compares bytes instead of floats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from export.errors import GraphError
from export.graph.editor import GraphEditor, attributes
from export.graph.qdq import CPU_SCHEME, Range, activation_scale

SCORES = "head.scores"
"""Name of the scores in a range table, the same for every form of the graph."""
_MARGIN = 1 / 8
_CLASS_AXIS = {"Conv": 0, "ConvTranspose": 1}


class _Head(NamedTuple):
    """Nodes between the last convolution and the labels."""

    convolution: onnx.NodeProto
    activation: onnx.NodeProto | None
    """ReLU, or the Max of ``pad_classes``."""
    grouping: onnx.NodeProto | None
    """Reshape into the four sub-pixels of a shuffled head."""
    argmax: onnx.NodeProto


def find_scores(model: onnx.ModelProto) -> tuple[str, int] | None:
    """Get the tensor that the ArgMax reads and its class axis; ``None`` for a graph without an ArgMax."""
    for node in model.graph.node:
        if node.op_type == "ArgMax":
            return node.input[0], int(attributes(node)["axis"])
    return None


def score_bounds(scores: np.ndarray, axis: int) -> Range:
    """Measure the range that ``quantize_scores`` needs: the smallest top score, the largest runner-up.

    Args:
        scores: float, any shape.
        axis: Class axis.
    """
    top = scores.max(axis, keepdims=True)
    runner_up = np.max(scores, where=scores < top, initial=-np.inf)
    return float(top.min()), float(max(runner_up, top.min()))


def quantize_scores(model: onnx.ModelProto, bounds: Range) -> onnx.ModelProto:
    """Let the ArgMax compare uint8 scores: QuantizeLinear follows the last convolution, with its activation.

    A score x becomes the level q(x) = clip(round(x / scale) + zero, 0, 255), which never decreases with x.
    ``bounds`` and 0, widened by an eighth on both sides, get the levels 0 to 255. If the top score of a pixel
    has a level above 0, and its runner-up one below 255, then:

    - the top class has the highest level, so that only a class of the same level can win instead of it;
    - such a class is not clipped, and its score is at most one scale lower.

    Clipping low scores therefore never changes a winner: their level is 0, that of the winner is higher.
    Nearly equal scores can change places, then the lowest index wins: 0.06 % of the labels on CamVid val.

    Args:
        model: Graph with an ArgMax, quantized with the cpu scheme. If its last convolution stays float, or
            anything else reads the scores (the confidence), it is returned unchanged. Not modified.
        bounds: Range of ``score_bounds`` over the calibration frames.
    """
    editor = GraphEditor(model)
    head = _find_head(editor)
    source = editor.producer(head.convolution.input[0])
    is_quantized = source is not None and source.op_type == "DequantizeLinear"
    if not is_quantized or editor.sole_reader(head.argmax.input[0]) is None:
        return editor.finish()
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    margin = _MARGIN * (high - low)
    scale, zero = activation_scale((low - margin, high + margin), CPU_SCHEME)
    parameters = [
        editor.add_array(f"{SCORES}/scale", np.float32(scale)),
        editor.add_array(f"{SCORES}/zero", np.uint8(zero)),
    ]
    reader = head.grouping or head.argmax
    reader.input[0] = editor.add("QuantizeLinear", SCORES, [reader.input[0], *parameters])
    return editor.finish()


def trim_padding(model: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """Remove padding classes, the last ones of the head, until ``width`` classes are left.

    Args:
        model: Float graph with an ArgMax. A head of at most ``width`` classes stays as it is. Not modified.
        width: Number of classes to keep, padding included; at least the number of real classes.

    Raises:
        GraphError: The ArgMax does not read the scores of a convolution.
    """
    editor = GraphEditor(model)
    head = _find_head(editor)
    axis, groups = _CLASS_AXIS[head.convolution.op_type], 4 if head.grouping is not None else 1
    width = min(width, editor.array(head.convolution.input[1]).shape[axis] // groups)
    constants = [(head.convolution, 1, axis), (head.convolution, 2, 0)]
    if head.activation is not None and head.activation.op_type == "Max":
        constants.append((head.activation, 1, 1))
    for node, position, class_axis in constants:
        parts = np.split(editor.array(node.input[position]), groups, class_axis)
        kept = np.concatenate([part.take(range(width), class_axis) for part in parts], class_axis)
        editor.set_node_array(node, position, node.input[position], kept)
    if head.grouping is not None:
        shape = editor.array(head.grouping.input[1]).copy()
        shape[2] = width
        editor.set_node_array(head.grouping, 1, head.grouping.input[1], shape)
    return editor.finish()


def _find_head(editor: GraphEditor) -> _Head:
    [argmax] = editor.of_type("ArgMax")
    between: dict[str, onnx.NodeProto] = {}
    node = editor.producer(argmax.input[0])
    while node is not None and node.op_type in ("Reshape", "Relu", "Max"):
        between[node.op_type] = node
        node = editor.producer(node.input[0])
    if node is None or node.op_type not in _CLASS_AXIS:
        raise GraphError("the ArgMax does not read the scores of a convolution")
    activation = between.get("Relu") or between.get("Max")
    return _Head(node, activation, between.get("Reshape"), argmax)
