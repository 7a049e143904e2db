"""The unfused ONNX graph of a network, written node by node with ESNet's module names.

The transforms of ``export.graph`` start from it. Writing the graph instead of tracing it makes it independent
of exporter versions, leaves out run-time size arithmetic (the authors' ``F.pad`` by 0), and names each tensor
after its module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from esnet.model import FCU, PFCU, PFCU_DILATIONS, DownsamplerBlock, ESNet, UpsamplerBlock
from runtime.artefact.card import LOGITS, TENSOR, BatchRange


def onnx_from_network(
    network: ESNet, size_hw: tuple[int, int], batch: BatchRange, opset: int
) -> onnx.ModelProto:
    """Write a network as ONNX, with one node for every convolution, BN and ReLU.

    Args:
        network: Weights and structure; written as in evaluation mode, without dropout.
        size_hw: Input height and width in pixels, multiples of 8.
        batch: Batch sizes; a fixed range makes the batch axis fixed, any other gives a symbolic N.
        opset: ONNX operator set, 13 or later.

    Returns:
        A checked model: ``tensor`` (N, 3, H, W) float32 to ``logits`` (N, K, H, W) float32.
    """
    writer = _Writer()
    encoder, decoder = network.encoder, network.decoder
    x = _downsampler(writer, "encoder.initial_block", encoder.initial_block, TENSOR)
    for path, layers in (("encoder.layers", encoder.layers), ("decoder.layers", decoder.layers)):
        for index, layer in enumerate(layers):
            x = _WRITERS[type(layer)](writer, f"{path}.{index}", layer, x)
    x = writer.conv("decoder.output_conv", decoder.output_conv, x)
    if network.config.head_kernel == 3:
        x = writer.relu("decoder.relu", writer.norm("decoder.output_bn", decoder.output_bn, x))
    writer.nodes[-1].output[0] = LOGITS

    height, width = size_hw
    axis: int | str = batch.min if batch.is_fixed else "N"
    frames, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [axis, channels, height, width])
        for name, channels in ((TENSOR, 3), (LOGITS, network.config.num_classes))
    )
    constants = list(writer.initializers.values())
    graph = helper.make_graph(writer.nodes, "esnet", [frames], [logits], constants)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="esnet-deploy")
    # IR 8 for opset 17, which TensorRT 8.6 reads.
    model.ir_version = helper.find_min_ir_version_for(opsets)
    onnx.checker.check_model(model)
    return model


class _Writer:
    """Collects nodes and initializers; nodes are named after modules, their outputs ``<node>/out``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{name}/out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, value: Tensor) -> str:
        array = np.ascontiguousarray(value.detach().cpu().float().numpy())
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def conv(self, name: str, module: nn.Module, x: str) -> str:
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        inputs = [x, self.constant(f"{name}.weight", module.weight)]
        if module.bias is not None:
            inputs.append(self.constant(f"{name}.bias", module.bias))
        attributes: dict[str, Any] = {
            "kernel_shape": list(module.kernel_size),
            "strides": list(module.stride),
            "pads": [*module.padding, *module.padding],
            "dilations": list(module.dilation),
        }
        if any(module.output_padding):
            attributes["output_padding"] = list(module.output_padding)
        op = "ConvTranspose" if isinstance(module, nn.ConvTranspose2d) else "Conv"
        return self.node(op, name, inputs, **attributes)

    def norm(self, name: str, module: nn.Module, x: str, *, node: str | None = None) -> str:
        assert isinstance(module, nn.BatchNorm2d)
        fields = ("weight", "bias", "running_mean", "running_var")
        constants = [self.constant(f"{name}.{field}", getattr(module, field)) for field in fields]
        return self.node("BatchNormalization", node or name, [x, *constants], epsilon=module.eps)

    def relu(self, name: str, x: str) -> str:
        return self.node("Relu", name, [x])


def _downsampler(writer: _Writer, path: str, block: DownsamplerBlock, x: str) -> str:
    conv = writer.conv(f"{path}.conv", block.conv, x)
    window, pads = [block.pool.kernel_size] * 2, [block.pool.padding] * 4
    name = f"{path}.pool"
    pool = writer.node("MaxPool", name, [x], kernel_shape=window, strides=[2, 2], pads=pads)
    if not block.norm_after_concat:
        conv = writer.relu(f"{path}.relu", writer.norm(f"{path}.bn", block.bn, conv))
        return writer.node("Concat", f"{path}.cat", [conv, pool], axis=1)
    joined = writer.node("Concat", f"{path}.cat", [conv, pool], axis=1)
    return writer.relu(f"{path}.relu", writer.norm(f"{path}.bn", block.bn, joined))


def _first_pair(writer: _Writer, path: str, block: FCU | PFCU, x: str) -> str:
    y = writer.relu(f"{path}.relu_1", writer.conv(f"{path}.conv3x1_1", block.conv3x1_1, x))
    y = writer.conv(f"{path}.conv1x3_1", block.conv1x3_1, y)
    return writer.relu(f"{path}.relu_2", writer.norm(f"{path}.bn1", block.bn1, y))


def _fcu(writer: _Writer, path: str, block: FCU, x: str) -> str:
    y = _first_pair(writer, path, block, x)
    y = writer.relu(f"{path}.relu_3", writer.conv(f"{path}.conv3x1_2", block.conv3x1_2, y))
    y = writer.norm(f"{path}.bn2", block.bn2, writer.conv(f"{path}.conv1x3_2", block.conv1x3_2, y))
    return writer.relu(f"{path}.relu", writer.node("Add", f"{path}.add", [x, y]))


def _pfcu(writer: _Writer, path: str, block: PFCU, x: str) -> str:
    y = _first_pair(writer, path, block, x)
    for dilation in PFCU_DILATIONS:
        suffix = f"2{dilation}"
        first, second = f"conv3x1_{suffix}", f"conv1x3_{suffix}"
        branch = writer.conv(f"{path}.{first}", block.get_submodule(first), y)
        branch = writer.relu(f"{path}.relu_{suffix}", branch)
        branch = writer.conv(f"{path}.{second}", block.get_submodule(second), branch)
        norm, node = block.branch_norm(dilation), f"{path}.bn2_{suffix}"
        owner = f"{path}.bn2" if block.shares_branch_norm else node
        branch = writer.norm(owner, norm, branch, node=node)
        x = writer.node("Add", f"{path}.add_{suffix}", [x, branch])
    return writer.relu(f"{path}.relu", x)


def _upsampler(writer: _Writer, path: str, block: UpsamplerBlock, x: str) -> str:
    y = writer.conv(f"{path}.conv", block.conv, x)
    return writer.relu(f"{path}.relu", writer.norm(f"{path}.bn", block.bn, y))


_WRITERS: dict[type[nn.Module], Callable[[_Writer, str, Any, str], str]] = {
    DownsamplerBlock: _downsampler,
    FCU: _fcu,
    PFCU: _pfcu,
    UpsamplerBlock: _upsampler,
}
