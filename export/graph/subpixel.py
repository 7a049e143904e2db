"""Replace stride-2 transposed convolutions by a convolution and a depth-to-space shuffle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from export.errors import GraphError
from export.graph.editor import GraphEditor, attributes

# (kernel, strides, pads, output_padding, dilations, group) -> kernel size.
_KERNELS = {
    ((2, 2), (2, 2), (0, 0, 0, 0), (0, 0), (1, 1), 1): 2,
    ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1): 3,
}


def upsample_to_subpixel(model: onnx.ModelProto, *, last_only: bool = False) -> onnx.ModelProto:
    """Replace ConvTranspose by Conv (4C channels) and DepthToSpace, exactly.

    Kernel 2, stride 2 is a 1x1 convolution; kernel 3, stride 2, padding 1, output padding 1 is a 2x2
    convolution padded at the end. A following ReLU (or the Max of a padded head) moves before the shuffle,
    where it fuses with the convolution. Channel order is DCR: the four sub-pixels are the outer axis.

    Args:
        model: Graph with BN already folded. Not modified.
        last_only: True rewrites only the last ConvTranspose, ESNet's head.

    Raises:
        GraphError: A transposed convolution has another geometry.

    Source: Shi et al., "Is the deconvolution layer the same as a convolutional layer?", arXiv 1609.07009.
    """
    editor = GraphEditor(model)
    deconvs = editor.of_type("ConvTranspose")
    for deconv in deconvs[-1:] if last_only else deconvs:
        _rewrite(editor, deconv)
    return editor.finish()


def _rewrite(editor: GraphEditor, deconv: onnx.NodeProto) -> None:
    weight = editor.array(deconv.input[1])  # (Cin, Cout, k, k)
    kernel = _kernel_of(deconv, weight)
    sub_kernels = _two_tap_kernels(weight) if kernel == 3 else weight[:, :, :, :, None, None]
    size = sub_kernels.shape[-1]
    # (Cin, Cout, i, j, kh, kw) -> (i, j, Cout, Cin, kh, kw) -> (4 Cout, Cin, kh, kw)
    conv_weight = sub_kernels.transpose(2, 3, 1, 0, 4, 5).reshape(-1, weight.shape[0], size, size)
    inputs = [deconv.input[0], editor.add_array(f"{deconv.name}.weight_subpixel", conv_weight)]
    if len(deconv.input) > 2:
        bias = np.tile(editor.array(deconv.input[2]), 4)
        inputs.append(editor.add_array(f"{deconv.name}.bias_subpixel", bias))
    editor.remove(deconv)
    geometry: dict[str, Any] = {
        "kernel_shape": [size, size],
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    pads = [0, 0, size - 1, size - 1]
    x = editor.add("Conv", deconv.name, inputs, pads=pads, **geometry)
    output, reader = deconv.output[0], editor.sole_reader(deconv.output[0])
    if reader is not None and reader.op_type in ("Relu", "Max"):
        output = reader.output[0]
        editor.remove(reader)
        # The Max of ``pad_classes`` has a per-channel floor, repeated here for the four sub-pixels.
        floors = [np.tile(editor.array(name), (1, 4, 1, 1)) for name in reader.input[1:]]
        names = [editor.add_array(f"{reader.name}.floor_subpixel", floor) for floor in floors]
        x = editor.add(reader.op_type, reader.name, [x, *names])
    shuffle = f"{deconv.name}.shuffle"
    editor.add("DepthToSpace", shuffle, [x], output=output, blocksize=2, mode="DCR")


def _kernel_of(deconv: onnx.NodeProto, weight: np.ndarray) -> int:
    """Get the kernel size, 2 or 3, of a supported geometry."""
    found = attributes(deconv)
    geometry = (
        weight.shape[2:],
        tuple(found.get("strides", [1, 1])),
        tuple(found.get("pads", [0, 0, 0, 0])),
        tuple(found.get("output_padding", [0, 0])),
        tuple(found.get("dilations", [1, 1])),
        found.get("group", 1),
    )
    if geometry not in _KERNELS:
        raise GraphError(
            f"ConvTranspose {deconv.name!r} is neither kernel 2 stride 2 nor kernel 3 stride 2 padding 1 "
            f"output padding 1: (kernel, strides, pads, output_padding, dilations, group) = {geometry}"
        )
    return _KERNELS[geometry]


def _two_tap_kernels(weight: np.ndarray) -> np.ndarray:
    """Split a 3-tap kernel into the 2-tap kernels of even and odd outputs, on both axes.

    Even output 2h reads input h through tap 1; odd output 2h + 1 reads h through tap 2, and h + 1 through
    tap 0.

    Args:
        weight: (Cin, Cout, 3, 3).

    Returns:
        (Cin, Cout, 2, 2, 2, 2): sub-pixel row, sub-pixel column, then kernel row, kernel column.
    """
    taps = np.zeros((2, 2, 3), weight.dtype)  # (sub-pixel, kernel position, original tap)
    taps[0, 0, 1] = taps[1, 0, 2] = taps[1, 1, 0] = 1
    kernels: np.ndarray = np.einsum("ioyx,apy,bqx->ioabpq", weight, taps, taps)
    return kernels
