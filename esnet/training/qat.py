"""Fake quantization: a float network rounds as its INT8 artefact will; gradients pass straight through.

What is rounded is what ``esnet-export quantize`` rounds: the input of every convolution, with one scale a
tensor; its weights, int8 and symmetric, with one scale an output channel; for TensorRT also the skips of the
residual blocks. Biases, sums and batch normalisation stay float.

The exporter rounds weights after batch normalisation was folded into them, this module before. That is the
same: folding multiplies an output channel by one number, its scale grows by the magnitude of that number, and
the levels are equal but for the sign. Where the exporter writes a transposed convolution as sub-pixels, each
of the four phases has its own scale, and rounds a little finer than here.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv 1712.05877, section 3. Built on torch's own operators: the modules of
``torch.ao.quantization`` are announced to be removed, and their stored scales do not survive an average of
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from esnet.model import FCU, PFCU, ESNet

_LEVELS = 127
_WEIGHT_AXIS = {nn.Conv2d: 0, nn.ConvTranspose2d: 1}
_MEMORY_BATCHES = 100


class FakeQuantization(nn.Module):
    """The ranges of one network's activations, and its forward pass in 8 bits.

    Nothing is attached to the network between calls: its parameters and state dict stay its own. In training
    mode each call moves the ranges towards the batch's smallest and largest values; the average is plain over
    the first batches, then exponential. Without any batch the ranges are empty and everything rounds badly.
    """

    axes: Mapping[str, int]
    """Path of each quantized convolution to the axis of its weight that has the output channels."""
    bounds: Tensor
    """Smallest and largest value of each convolution's input, float (L, 2), in the order of ``axes``."""
    num_batches: Tensor
    """Batches that each pair of bounds was measured on, long (L,)."""

    def __init__(self, network: ESNet, scheme: str) -> None:
        """Prepare for a network.

        Args:
            network: Any family.
            scheme: ``tensorrt``: activations int8, symmetric, skips too; ``cpu``: uint8 with a zero-point.
        """
        super().__init__()
        self.is_symmetric = scheme == "tensorrt"
        self.axes = {
            f"{part}.{path}": _WEIGHT_AXIS[type(module)]
            for part in ("encoder", "decoder")  # the head of two-stage training is not deployed
            for path, module in network.get_submodule(part).named_modules()
            if type(module) in _WEIGHT_AXIS
        }
        self.register_buffer("bounds", torch.zeros(len(self.axes), 2))
        self.register_buffer("num_batches", torch.zeros(len(self.axes), dtype=torch.long))

    def forward(self, network: ESNet, frames_NCHW: Tensor) -> Tensor:
        """Score frames as the INT8 network will; arguments and result are those of the network."""
        weights = {
            f"{path}.weight": round_weight(network.get_submodule(path).weight, axis)  # type: ignore[arg-type]
            for path, axis in self.axes.items()
        }
        with ExitStack() as hooks:
            for index, path in enumerate(self.axes):
                reader = self._reader(network, path)
                hook = partial(self._round_input, index)
                hooks.enter_context(reader.register_forward_pre_hook(hook))
            logits: Tensor = functional_call(network, weights, (frames_NCHW,))
        return logits

    def _reader(self, network: ESNet, path: str) -> nn.Module:
        """Get the module whose input is rounded: the convolution, or its block, whose skip then is too."""
        block_path, _, name = path.rpartition(".")
        block = network.get_submodule(block_path)
        reads_skip = isinstance(block, FCU | PFCU) and name == "conv3x1_1"
        return block if reads_skip and self.is_symmetric else network.get_submodule(path)

    def _round_input(self, index: int, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        if self.training:
            self._observe(index, inputs[0])
        return round_activation(inputs[0], self.bounds[index], is_symmetric=self.is_symmetric)

    @torch.no_grad()
    def _observe(self, index: int, values: Tensor) -> None:
        self.num_batches[index] += 1
        share = self.num_batches[index].clamp(max=_MEMORY_BATCHES).reciprocal()
        batch_bounds = torch.stack(torch.aminmax(values)).float()
        self.bounds[index] = torch.lerp(self.bounds[index], batch_bounds, share)


def round_weight(weight: Tensor, axis: int) -> Tensor:
    """Round weights to int8, symmetric, with one scale along ``axis``; gradients pass as they are."""
    others = [index for index in range(weight.ndim) if index != axis]
    scale = _positive(weight.detach().abs().amax(others) / _LEVELS)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -_LEVELS, _LEVELS)


def round_activation(values: Tensor, bounds: Tensor, *, is_symmetric: bool) -> Tensor:
    """Round values to 8 bits of a range; gradients pass where values lie inside it, and are 0 outside.

    Args:
        values: Of any shape and float type; the result has the same.
        bounds: Smallest and largest value, float (2,); 0 is made part of the range and is always exact.
        is_symmetric: int8 with zero-point 0, else uint8 with a zero-point.
    """
    low, high = bounds[0].clamp(max=0), bounds[1].clamp(min=0)
    if is_symmetric:
        scale = _positive(torch.maximum(-low, high) / _LEVELS)
        zero, lowest, highest = torch.zeros_like(scale, dtype=torch.int32), -128, 127
    else:
        scale = _positive((high - low) / 255)
        zero, lowest, highest = (-low / scale).round().clamp(0, 255).to(torch.int32), 0, 255
    # In float32, for older versions of torch know no bf16 here.
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, lowest, highest)
    return rounded.to(values.dtype)


def _positive(scale: Tensor) -> Tensor:
    """Take 1, which is exact, where there is nothing but 0 to write."""
    return torch.where(scale > 0, scale, 1.0)
