"""The end of the graph: class indices as bytes instead of logits, and a head of an even width."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.errors import GraphError
from export.graph.editor import GraphEditor, attribute, dims_of

LABELS_NAME, CONFIDENCE_NAME = "labels", "confidence"

_NEVER = -1e4
"""Logit of a padding class: far below any real one, and a finite half."""


def pad_classes(model: onnx.ModelProto, *, multiple: int = 8, at_least: int = 1) -> onnx.ModelProto:
    """Widen the head by classes that the argmax never picks.

    TensorRT computes channels in packs, and slices a head of 19 or 11 classes out of a wider one with a
    kernel of its own; a head that is wide by itself needs none. The added classes have weights 0 and a bias
    of -1e4. Where a ReLU ends the head, it becomes a Max with 0 for real classes and -1e4 for added ones.

    Args:
        model: Graph whose logits (N, K, H, W) come from a ConvTranspose, or from a ReLU on one; BN folded.
            Not modified.
        multiple: What the number of classes becomes a multiple of.
        at_least: What it then is at least.

    Raises:
        GraphError: Logits of another rank, or made in another way.
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
    if (
        last is None
        or deconv is None
        or deconv.op_type != "ConvTranspose"
        or len(deconv.input) != 3
    ):
        raise GraphError(
            "pad_classes needs logits from a ConvTranspose with a bias, or from a ReLU on one"
        )
    weight, bias = editor.array(deconv.input[1]), editor.array(deconv.input[2])
    wide = np.pad(weight, ((0, 0), (0, added), (0, 0), (0, 0)))
    editor.set_node_array(deconv, 1, deconv.input[1], wide)
    editor.set_node_array(
        deconv, 2, deconv.input[2], np.pad(bias, (0, added), constant_values=_NEVER)
    )
    if last is not deconv:
        floor = np.zeros((1, num_classes + added, 1, 1), np.float32)
        floor[:, num_classes:] = _NEVER
        editor.remove(last)
        floor_name = editor.add_array(f"{last.name}.floor", floor)
        editor.add("Max", last.name, [deconv.output[0], floor_name], output=output.name)
    dims[1] = num_classes + added
    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, dims))
    return editor.finish()


def padded_width(num_classes: int, multiple: int, at_least: int) -> int:
    """Count the classes of a head that is a multiple of ``multiple`` and at least ``at_least`` wide."""
    return max(num_classes + -num_classes % multiple, at_least)


def append_labels(model: onnx.ModelProto, *, confidence: bool = False) -> onnx.ModelProto:
    """Replace the logits by class indices: 1 byte a pixel leaves the device, not 4 K.

    Where a depth-to-space shuffle makes the logits, the maps are taken from the four groups in front of it,
    and only they are shuffled. Class indices go int64, float, uint8, the one route that every TensorRT
    accepts.

    Args:
        model: Graph with one output, logits (N, K, H, W) float32; K, H, W fixed, K at most 256. Not
            modified.
        confidence: Add a second output, the top softmax probability x 255, rounded.

    Returns:
        A model with outputs ``labels`` and, if asked, ``confidence``: uint8 (N, H, W); ties go to the lowest
        index.

    Raises:
        GraphError: Logits of another rank or an open size, or K above 256.
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
    head = _Head(editor, logits.name, dims[0], sizes)
    del editor.graph.output[:]
    classes = editor.add("ArgMax", "head.argmax", [head.scores], axis=head.axis, keepdims=0)
    head.emit(LABELS_NAME, editor.add("Cast", "head.labels_float", [classes], to=TensorProto.FLOAT))
    if confidence:
        head.emit(CONFIDENCE_NAME, head.top_probability())
    return editor.finish()


class _Head:
    """Where the scores are, on which axis the classes lie, and how a map gets from there to the output."""

    def __init__(
        self, editor: GraphEditor, logits: str, batch: int | str, sizes: list[int]
    ) -> None:
        self._editor, self._batch = editor, batch
        classes, self._height, self._width = sizes
        self.scores, self.axis = logits, 1
        self._flat_shape: str | None = None
        shuffle = editor.producer(logits)
        if shuffle is None or shuffle.op_type != "DepthToSpace":
            return
        if attribute(shuffle, "blocksize", 1) != 2 or attribute(shuffle, "mode", b"DCR") != b"DCR":
            raise GraphError(f"the shuffle {shuffle.name!r} must be DCR with block size 2")
        editor.remove(shuffle)
        flat = np.array([0, self._height, self._width], np.int64)
        self._flat_shape = editor.add_array("head.flat", flat)
        groups = np.array([0, 4, classes, self._height // 2, self._width // 2], np.int64)
        shape = editor.add_array("head.groups", groups)
        self.scores = editor.add("Reshape", "head.grouped", [shuffle.input[0], shape])
        self.axis = 2

    def top_probability(self) -> str:
        """Compute 255 times the top softmax probability, plus 0.5, since the cast to uint8 cuts off."""
        editor = self._editor
        softmax = editor.add("Softmax", "head.softmax", [self.scores], axis=self.axis)
        if editor.opset >= 18:
            axes = editor.add_array("head.axes", np.array([self.axis], np.int64))
            top = editor.add("ReduceMax", "head.top", [softmax, axes], keepdims=0)
        else:
            top = editor.add("ReduceMax", "head.top", [softmax], axes=[self.axis], keepdims=0)
        full = editor.add_array("head.full", np.float32(255.0).reshape(1))
        half = editor.add_array("head.half", np.float32(0.5).reshape(1))
        return editor.add("Add", "head.round", [editor.add("Mul", "head.scale", [top, full]), half])

    def emit(self, name: str, tensor: str) -> None:
        """Shuffle a float map if the scores were in groups, and make it a uint8 output."""
        editor = self._editor
        if self._flat_shape is not None:
            tensor = editor.add(
                "DepthToSpace", f"head.{name}_shuffle", [tensor], blocksize=2, mode="DCR"
            )
            tensor = editor.add("Reshape", f"head.{name}_flat", [tensor, self._flat_shape])
        editor.add("Cast", f"head.{name}", [tensor], output=name, to=TensorProto.UINT8)
        dims = [self._batch, self._height, self._width]
        editor.graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, dims))
