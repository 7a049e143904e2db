"""The whole network: blocks, encoder, decoder, and the one configuration that covers all public variants.

Shapes: N batch, C channels, H x W pixels (both multiples of 8), K classes.

Source: Wang et al., "ESNet: An Efficient Symmetric Network for Real-time Semantic Segmentation",
arXiv 1906.09826, sections 3.1 (FCU, PFCU) and 3.2 (table 1); attribute names are those of
github.com/xiaoyufenfei/ESNet (MIT), so that its checkpoints load unchanged. The variants are those of
``pytorchcv`` (MIT) and github.com/zh320/realtime-semantic-segmentation-pytorch (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor, nn

PFCU_DILATIONS = (2, 5, 9)

BranchSum = Literal["residual first", "branches first", "stacked"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """What differs between the public implementations of ESNet; the defaults are the authors'."""

    num_classes: int
    """Classes the head scores, K."""
    conv_bias: bool = True
    """Whether the convolutions have a bias; the transposed ones always have."""
    norm_after_concat: bool = True
    """Downsampler: BN and ReLU on ``cat(conv, pool)``; otherwise on the conv half alone, pool left bare."""
    pool_kernel: int = 2
    """Downsampler: max-pool window, 2 (no padding) or 3 (padding 1); its stride is 2."""
    shared_branch_norm: bool = True
    """PFCU: one BN for the three dilated branches; otherwise each has its own."""
    branch_sum: BranchSum = "residual first"
    """PFCU: the order in which residual and branches are added. The sum is the same but for rounding; with
    the family's own order the logits are its own to the last bit."""
    norm_eps: float = 1e-3
    """Epsilon of every BN."""
    head_kernel: int = 2
    """Last transposed convolution: kernel 2, or kernel 3 followed by BN and ReLU."""
    encoder_head: bool = True
    """Whether the 1x1 classifier on the encoder, used in two-stage training only, exists."""
    fcu_dropout: float = 0.03
    """Channel dropout in the encoder's FCUs while training."""
    pfcu_dropout: float = 0.3
    """Channel dropout in the PFCU branches while training."""

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.pool_kernel not in (2, 3) or self.head_kernel not in (2, 3):
            raise ValueError("pool_kernel and head_kernel must be 2 or 3")


class DownsamplerBlock(nn.Module):
    """Halve H and W: a stride-2 convolution beside a max-pool, concatenated to ``out_channels``."""

    def __init__(self, in_channels: int, out_channels: int, config: NetworkConfig) -> None:
        super().__init__()
        conv_channels = out_channels - in_channels
        self.norm_after_concat = config.norm_after_concat
        self.conv = nn.Conv2d(
            in_channels, conv_channels, 3, stride=2, padding=1, bias=config.conv_bias
        )
        self.pool = nn.MaxPool2d(config.pool_kernel, stride=2, padding=config.pool_kernel // 3)
        norm_channels = out_channels if self.norm_after_concat else conv_channels
        self.bn = nn.BatchNorm2d(norm_channels, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, H/2, W/2)."""
        conv, pool = self.conv(x), self.pool(x)
        if self.norm_after_concat:
            return torch.relu(self.bn(torch.cat([conv, pool], 1)))
        return torch.cat([torch.relu(self.bn(conv)), pool], 1)


class FCU(nn.Module):
    """Factorized convolution unit: two (k x 1, 1 x k) pairs with a residual around them."""

    def __init__(
        self, channels: int, kernel: int, config: NetworkConfig, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv3x1_1, self.conv1x3_1 = _factorized_pair(channels, kernel, 1, config)
        self.bn1 = nn.BatchNorm2d(channels, eps=config.norm_eps)
        self.conv3x1_2, self.conv1x3_2 = _factorized_pair(channels, kernel, 1, config)
        self.bn2 = nn.BatchNorm2d(channels, eps=config.norm_eps)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.conv1x3_1(torch.relu(self.conv3x1_1(x)))
        y = self.conv1x3_2(torch.relu(self.conv3x1_2(torch.relu(self.bn1(y)))))
        return torch.relu(x + self.dropout(self.bn2(y)))


class PFCU(nn.Module):
    """Parallel factorized convolution unit: three dilated branches summed onto the residual.

    ``bn2`` is one module applied to all three branches when ``config.shared_branch_norm``, as the
    authors have it; otherwise the branches own ``bn2_22``, ``bn2_25`` and ``bn2_29``.
    """

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.shares_branch_norm = config.shared_branch_norm
        self.branch_sum = config.branch_sum
        self.conv3x1_1, self.conv1x3_1 = _factorized_pair(channels, 3, 1, config)
        self.bn1 = nn.BatchNorm2d(channels, eps=config.norm_eps)
        if config.shared_branch_norm:
            self.bn2 = nn.BatchNorm2d(channels, eps=config.norm_eps)
        for dilation in PFCU_DILATIONS:
            pair = _factorized_pair(channels, 3, dilation, config)
            self.add_module(f"conv3x1_2{dilation}", pair[0])
            self.add_module(f"conv1x3_2{dilation}", pair[1])
            if not config.shared_branch_norm:
                self.add_module(f"bn2_2{dilation}", nn.BatchNorm2d(channels, eps=config.norm_eps))
        self.dropout = nn.Dropout2d(config.pfcu_dropout)

    def branch_norm(self, dilation: int) -> nn.Module:
        """Get the BN that follows the branch of this dilation."""
        return self.get_submodule("bn2" if self.shares_branch_norm else f"bn2_2{dilation}")

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = torch.relu(self.bn1(self.conv1x3_1(torch.relu(self.conv3x1_1(x)))))
        branches = [self._branch(y, dilation) for dilation in PFCU_DILATIONS]
        if self.branch_sum == "stacked":
            return torch.relu(torch.stack(branches).sum(0) + x)
        terms = [x, *branches] if self.branch_sum == "residual first" else [*branches, x]
        return torch.relu(reduce(add, terms))

    def _branch(self, y: Tensor, dilation: int) -> Tensor:
        y = torch.relu(self.get_submodule(f"conv3x1_2{dilation}")(y))
        y = self.get_submodule(f"conv1x3_2{dilation}")(y)
        y = self.dropout(self.branch_norm(dilation)(y))
        return y


class UpsamplerBlock(nn.Module):
    """Double H and W with a transposed 3x3 convolution, BN and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            in_channels, out_channels, 3, stride=2, padding=1, output_padding=1
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, 2H, 2W)."""
        return torch.relu(self.bn(self.conv(x)))


class Encoder(nn.Module):
    """(N, 3, H, W) to (N, 128, H/8, W/8)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.initial_block = DownsamplerBlock(3, 16, config)
        self.layers = nn.ModuleList(
            [
                *(FCU(16, 3, config, dropout=config.fcu_dropout) for _ in range(3)),
                DownsamplerBlock(16, 64, config),
                *(FCU(64, 5, config, dropout=config.fcu_dropout) for _ in range(2)),
                DownsamplerBlock(64, 128, config),
                *(PFCU(128, config) for _ in range(3)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode normalised frames (N, 3, H, W) float."""
        x = self.initial_block(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder(nn.Module):
    """(N, 128, H/8, W/8) to logits (N, K, H, W)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                UpsamplerBlock(128, 64, config),
                *(FCU(64, 5, config) for _ in range(2)),
                UpsamplerBlock(64, 16, config),
                *(FCU(16, 3, config) for _ in range(2)),
            ]
        )
        if config.head_kernel == 2:
            self.output_conv = nn.ConvTranspose2d(16, config.num_classes, 2, stride=2)
        else:
            self.output_conv = nn.ConvTranspose2d(
                16, config.num_classes, 3, stride=2, padding=1, output_padding=1
            )
            self.output_bn = nn.BatchNorm2d(config.num_classes, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Decode features to logits."""
        for layer in self.layers:
            x = layer(x)
        x = self.output_conv(x)
        return torch.relu(self.output_bn(x)) if hasattr(self, "output_bn") else x


class ESNet(nn.Module):
    """The network. With the default configuration its state dict is the authors', key for key."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.encoder_head:
            self.encoder_output_conv = nn.Conv2d(128, config.num_classes, 1)

    def forward(self, x: Tensor, only_encoder: bool = False) -> Tensor:
        """Score every pixel.

        Args:
            x: Normalised RGB frames (N, 3, H, W) float, H and W multiples of 8.
            only_encoder: Score the encoder's features instead, for two-stage training; needs
                ``config.encoder_head``.

        Returns:
            Logits (N, K, H, W), or (N, K, H/8, W/8) with ``only_encoder``.
        """
        x = self.encoder(x)
        x = self.encoder_output_conv(x) if only_encoder else self.decoder(x)
        return x


def normalise(images_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute (images / 255 - mean) / std on the images' own device.

    Args:
        images_NHWC: RGB, uint8 (N, H, W, 3).
        mean: RGB mean on the 0-1 scale.
        std: RGB standard deviation on the 0-1 scale.

    Returns:
        float32 (N, 3, H, W).
    """
    scaled = images_NHWC.permute(0, 3, 1, 2).float().div(255)
    shift, scale = (scaled.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (scaled - shift) / scale


def _factorized_pair(
    channels: int, kernel: int, dilation: int, config: NetworkConfig
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Make the (k x 1) and (1 x k) convolutions that keep H and W."""
    padding = (kernel - 1) // 2 * dilation
    return (
        nn.Conv2d(
            channels,
            channels,
            (kernel, 1),
            padding=(padding, 0),
            dilation=(dilation, 1),
            bias=config.conv_bias,
        ),
        nn.Conv2d(
            channels,
            channels,
            (1, kernel),
            padding=(0, padding),
            dilation=(1, dilation),
            bias=config.conv_bias,
        ),
    )
