"""INT8 in the graph: insert QuantizeLinear and DequantizeLinear (Q/DQ) around the convolutions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import onnx

from export.errors import GraphError
from export.graph.editor import GraphEditor

Range = tuple[float, float]
_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1}
_LEVELS = 127  # -128 is not used, so that TensorRT and CPU kernels agree


class Scheme(NamedTuple):
    """Format of 8-bit activations. Weights are always int8, symmetric, with one scale per channel."""

    name: str
    """Name on the command line."""
    is_symmetric: bool
    """True: int8 with zero-point 0. False: uint8 with a zero-point."""


TENSORRT_SCHEME = Scheme("tensorrt", is_symmetric=True)
CPU_SCHEME = Scheme("cpu", is_symmetric=False)
SCHEMES = {scheme.name: scheme for scheme in (TENSORRT_SCHEME, CPU_SCHEME)}


def quantizable_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """List the tensors whose range quantization needs: data inputs of convolutions, in graph order."""
    return tuple(dict.fromkeys(node.input[0] for node in _convolutions(GraphEditor(model))))


def insert_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    *,
    keep: Collection[str] = (),
) -> onnx.ModelProto:
    """Quantize the convolutions of a float graph.

    The data input of each convolution passes through Q and DQ; its weights are stored as int8 and pass
    through DQ. A tensor with several readers is quantized once. The skip input of a residual Add is quantized
    too: TensorRT then fuses Conv, Add and ReLU into one INT8 kernel, and OpenVINO keeps no float copy.
    Biases stay float, as TensorRT requires. There is no Q/DQ between a convolution and its ReLU, and none
    after the last layer.

    Args:
        model: Float graph, BN folded. Not modified.
        ranges: Smallest and largest value of each of the ``quantizable_tensors``.
        scheme: Format of 8-bit activations.
        keep: Names of convolutions that stay float.

    Raises:
        GraphError: The graph is already quantized, a range is missing, or a weight is not finite.
    """
    editor = GraphEditor(model)
    if editor.of_type("QuantizeLinear", "DequantizeLinear"):
        raise GraphError("the graph is already quantized", hint="start from the FP32 ONNX file")
    done: dict[str, str] = {}
    for node in _convolutions(editor):
        if node.name in keep:
            continue
        tensor = node.input[0]
        if tensor not in done:
            done[tensor] = _quantized(editor, tensor, ranges, scheme)
        node.input[0] = done[tensor]
        _quantize_weight(editor, node)
    for node in editor.of_type("Add"):
        for position, tensor in enumerate(node.input):
            other = editor.producer(node.input[1 - position])
            is_residual = other is not None and other.op_type in ("Conv", "Add")
            if tensor in done and is_residual:
                node.input[position] = done[tensor]
    return editor.finish()


def _convolutions(editor: GraphEditor) -> list[onnx.NodeProto]:
    """List the convolutions with constant weights."""
    return [node for node in editor.of_type(*_WEIGHT_AXIS) if node.input[1] in editor.arrays]


def _quantized(
    editor: GraphEditor, tensor: str, ranges: Mapping[str, Range], scheme: Scheme
) -> str:
    """Append Q and DQ to a tensor, and return the name of the dequantized tensor."""
    scale, zero = activation_scale(range_of(tensor, ranges), scheme)
    scale_name = editor.add_array(f"{tensor}/scale", np.float32(scale))
    dtype = np.int8 if scheme.is_symmetric else np.uint8
    zero_name = editor.add_array(f"{tensor}/zero", dtype(zero))
    parameters = [scale_name, zero_name]
    quantized = editor.add("QuantizeLinear", f"{tensor}/quantize", [tensor, *parameters])
    return editor.add("DequantizeLinear", f"{tensor}/dequantize", [quantized, *parameters])


def range_of(tensor: str, ranges: Mapping[str, Range]) -> Range:
    """Look up the range of a tensor; raise ``GraphError`` if it is missing."""
    if tensor not in ranges:
        raise GraphError(
            f"no range for {tensor!r}: the table is for another network or version",
            hint="calibrate this network: --calibration DIR",
        )
    return ranges[tensor]


def activation_scale(bounds: Range, scheme: Scheme) -> tuple[float, int]:
    """Get scale and zero-point for a range; 0 is represented exactly, because convolutions pad with it.

    An empty range (a tensor that is always 0, or too close to 0 for float32) gets scale 1.
    """
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if not np.isfinite(low) or not np.isfinite(high):
        raise GraphError(
            f"the range {bounds} is not finite", hint="check the calibration frames and the weights"
        )
    span = max(-low, high) / _LEVELS if scheme.is_symmetric else (high - low) / 255
    scale = span if span >= np.finfo(np.float32).tiny else 1.0
    if scheme.is_symmetric:
        return scale, 0
    return scale, int(np.clip(round(-low / scale), 0, 255))


def _quantize_weight(editor: GraphEditor, node: onnx.NodeProto) -> None:
    """Store a convolution's weight as int8 with one scale per output channel."""
    name, axis = node.input[1], _WEIGHT_AXIS[node.op_type]
    weight = editor.array(name).astype(np.float32)
    if not np.isfinite(weight).all():
        raise GraphError(
            f"weight {name!r} holds NaN or Inf", hint="check the checkpoint it came from"
        )
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight).max(axis=others)
    scale = np.where(largest > 0, largest / _LEVELS, 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    levels = np.clip(np.round(weight / scale.reshape(shape)), -_LEVELS, _LEVELS).astype(np.int8)
    inputs = [
        editor.add_array(f"{name}/int8", levels),
        editor.add_array(f"{name}/scale", scale),
        editor.add_array(f"{name}/zero", np.zeros(len(scale), np.int8)),
    ]
    node.input[1] = editor.add("DequantizeLinear", f"{name}/dequantize", inputs, axis=axis)


def quantized_convolutions(model: onnx.ModelProto) -> tuple[str, ...]:
    """List the names of the convolutions that read 8-bit data."""
    made = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    convolutions = (node for node in model.graph.node if node.op_type in _WEIGHT_AXIS)
    return tuple(node.name for node in convolutions if node.input[0] in made)
