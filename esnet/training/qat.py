"""Fake quantization: run a float network with INT8 rounding, with straight-through gradients.

The same tensors are quantized as by ``esnet-export quantize``: the input of every convolution, with one scale
per tensor; its weights, int8 and symmetric, with one scale per output channel; the skip connections of the
residual blocks. Biases, sums and batch normalisation stay float, and so do the logits.

The exporter quantizes the weights after BN folding, this module before it. Both give the same levels up to
the sign: folding multiplies an output channel, and thus its scale, by one factor. If the exporter writes a
transposed convolution in subpixel form, each of the four phases has its own scale, which is slightly finer.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv 1712.05877, section 3. This module uses torch's operators instead of
``torch.ao.quantization``, which is deprecated and whose stored scales are wrong after weight averaging.
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
_AVERAGED_BATCHES = 100


class FakeQuantization(nn.Module):
    """Activation ranges of a network, and its forward pass with fake quantization.

    The network's parameters and state dict stay unchanged. In training mode each call updates the ranges with
    the batch's minimum and maximum: an arithmetic mean over the first 100 batches, then an exponential moving
    average. The ranges are zero, and outputs meaningless, until the first batch in training mode.
    """

    axes: Mapping[str, int]
    """Path of each quantized convolution to the output-channel axis of its weight."""
    bounds: Tensor
    """Minimum and maximum of each convolution's input, float (L, 2), in the order of ``axes``."""
    num_batches: Tensor
    """Number of batches behind each pair of bounds, long (L,)."""

    def __init__(self, network: ESNet, scheme: str) -> None:
        """Find the convolutions of a network.

        Args:
            network: ESNet of any family.
            scheme: ``tensorrt``: activations int8, symmetric; ``cpu``: activations uint8 with a zero-point.
        """
        super().__init__()
        self.is_symmetric = scheme == "tensorrt"
        self.axes = {
            f"{part}.{path}": _WEIGHT_AXIS[type(module)]
            for part in ("encoder", "decoder")  # the encoder's 1x1 head is not deployed
            for path, module in network.get_submodule(part).named_modules()
            if type(module) in _WEIGHT_AXIS
        }
        self.register_buffer("bounds", torch.zeros(len(self.axes), 2))
        self.register_buffer("num_batches", torch.zeros(len(self.axes), dtype=torch.long))

    def forward(self, network: ESNet, images_NCHW: Tensor) -> Tensor:
        """Compute the logits (N, K, H, W) of images (N, 3, H, W) with fake quantization."""
        weights = {
            f"{path}.weight": round_weight(network.get_submodule(path).weight, axis)  # type: ignore[arg-type]
            for path, axis in self.axes.items()
        }
        with ExitStack() as hooks:
            for index, path in enumerate(self.axes):
                module = self._hooked_module(network, path)
                hook = partial(self._round_input, index)
                hooks.enter_context(module.register_forward_pre_hook(hook))
            logits: Tensor = functional_call(network, weights, (images_NCHW,))
        return logits

    def _hooked_module(self, network: ESNet, path: str) -> nn.Module:
        """Get the module whose input is quantized: the convolution, or its block to include the skip."""
        block_path, _, name = path.rpartition(".")
        block = network.get_submodule(block_path)
        has_skip = isinstance(block, FCU | PFCU) and name == "conv3x1_1"
        return block if has_skip else network.get_submodule(path)

    def _round_input(self, index: int, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        if self.training:
            self._observe(index, inputs[0])
        return round_activation(inputs[0], self.bounds[index], is_symmetric=self.is_symmetric)

    @torch.no_grad()
    def _observe(self, index: int, values: Tensor) -> None:
        self.num_batches[index] += 1
        share = self.num_batches[index].clamp(max=_AVERAGED_BATCHES).reciprocal()
        batch_bounds = torch.stack(torch.aminmax(values)).float()
        self.bounds[index] = torch.lerp(self.bounds[index], batch_bounds, share)


def round_weight(weight: Tensor, axis: int) -> Tensor:
    """Round weights to int8, symmetric, with one scale per index of ``axis``; gradients pass unchanged."""
    others = [index for index in range(weight.ndim) if index != axis]
    scale = _positive(weight.detach().abs().amax(others) / _LEVELS)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -_LEVELS, _LEVELS)


def round_activation(values: Tensor, bounds: Tensor, *, is_symmetric: bool) -> Tensor:
    """Round values to 8 bits; gradients pass unchanged inside the range and are 0 outside.

    Args:
        values: Activations of any shape and float type; the result has the same.
        bounds: Minimum and maximum, float (2,); the range is extended to include 0, which stays exact.
        is_symmetric: True for int8 with zero-point 0, false for uint8 with a zero-point.
    """
    low, high = bounds[0].clamp(max=0), bounds[1].clamp(min=0)
    if is_symmetric:
        scale = _positive(torch.maximum(-low, high) / _LEVELS)
        zero, lowest, highest = torch.zeros_like(scale, dtype=torch.int32), -128, 127
    else:
        scale = _positive((high - low) / 255)
        zero, lowest, highest = (-low / scale).round().clamp(0, 255).to(torch.int32), 0, 255
    # In float32: older versions of torch do not support bf16 here.
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, lowest, highest)
    return rounded.to(values.dtype)


def _positive(scale: Tensor) -> Tensor:
    """Replace scales of 0, which belong to all-zero tensors, by 1."""
    return torch.where(scale > 0, scale, 1.0)
