"""Max-pool the uint8 frames instead of floats, with a quarter of the memory traffic."""

from __future__ import annotations

import numpy as np
import onnx

from export.graph.editor import GraphEditor, attributes
from runtime.artefact.card import FRAMES

_MONOTONE = ("Cast", "Sub", "Transpose")
_TWO_BY_TWO = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0] * 4}


def pool_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute the 2x2 max-pool of the input on the uint8 frames, before the cast to float.

    The nodes between frames and pool (cast, subtraction of a constant, transpose) are monotone, rounding
    included, so that max(f(x)) = f(max(x)) and the result is bit-identical. OpenVINO would otherwise reorder
    the whole frame from three to sixteen channels before it pools.

    Args:
        model: Graph with input ``frames``, uint8 (N, H, W, 3). A graph without such a 2x2 max-pool of stride
            2 is returned unchanged. Not modified.
    """
    editor = GraphEditor(model)
    for pool in editor.of_type("MaxPool"):
        chain = _chain_to_frames(editor, pool.input[0])
        if chain is not None and {"pads": [0] * 4, **attributes(pool)} == _TWO_BY_TWO:
            _rewrite(editor, pool, chain)
    return editor.finish()


def _chain_to_frames(editor: GraphEditor, tensor: str) -> list[onnx.NodeProto] | None:
    """List the nodes from frames to a tensor, in order; ``None`` if one is not monotone."""
    chain: list[onnx.NodeProto] = []
    while tensor != FRAMES:
        node = editor.producer(tensor)
        if node is None or node.op_type not in _MONOTONE:
            return None
        chain.insert(0, node)
        tensor = node.input[0]
    return chain


def _rewrite(editor: GraphEditor, pool: onnx.NodeProto, chain: list[onnx.NodeProto]) -> None:
    ends = editor.add_array(f"{pool.name}.ends", np.array([np.iinfo(np.int64).max] * 2, np.int64))
    axes = editor.add_array(f"{pool.name}.axes", np.array([1, 2], np.int64))
    steps = editor.add_array(f"{pool.name}.steps", np.array([2, 2], np.int64))
    corners = []
    for row in (0, 1):
        for column in (0, 1):
            name = f"{pool.name}.{row}{column}"
            start = editor.add_array(f"{name}.start", np.array([row, column], np.int64))
            corners.append(editor.add("Slice", name, [FRAMES, start, ends, axes, steps]))
    tensor = editor.add("Max", pool.name, corners)
    for node in chain:
        name = f"{pool.name}.{node.name.rpartition('.')[2]}"
        tensor = editor.add(node.op_type, name, [tensor, *node.input[1:]], **attributes(node))
    editor.rewire(pool.output[0], tensor)
    editor.remove(pool)
