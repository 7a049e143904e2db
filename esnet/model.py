"""ESNet: blocks, encoder, decoder, and one configuration for all public variants.

Shapes: N batch, C channels, H x W pixels (both multiples of 8), K classes.

Source: Wang et al., "ESNet: An Efficient Symmetric Network for Real-time Semantic Segmentation",
arXiv 1906.09826, sections 3.1 (FCU, PFCU) and 3.2 (table 1); attribute names are those of
github.com/xiaoyufenfei/ESNet (MIT), so that its checkpoints load unchanged. The variants are those of
``pytorchcv`` (MIT) and github.com/zh320/realtime-semantic-segmentation-pytorch (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial, reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor, nn

PFCU_DILATIONS = (2, 5, 9)

BranchSum = Literal["residual first", "branches first", "stacked"]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Differences between the public implementations of ESNet; the defaults are those of the authors."""

    num_classes: int
    """Number of classes, K."""
    _: KW_ONLY
    conv_bias: bool = True
    """True if the convolutions have a bias; transposed convolutions always have one."""
    norm_after_concat: bool = True
    """Downsampler: BN and ReLU on ``cat(conv, pool)`` if true, otherwise on the conv half only."""
    pool_kernel: int = 2
    """Downsampler: max-pool window, 2 (no padding) or 3 (padding 1); the stride is 2."""
    shared_branch_norm: bool = True
    """PFCU: one BN for the three dilated branches if true, otherwise one per branch."""
    branch_sum: BranchSum = "residual first"
    """PFCU: order in which residual and branches are added. The sums differ only in rounding; with the
    family's order the logits are bit-identical to those of its own code."""
    norm_eps: float = 1e-3
    """Epsilon of every BN."""
    head_kernel: int = 2
    """Last transposed convolution: kernel 2, or kernel 3 followed by BN and ReLU."""
    encoder_head: bool = True
    """True if the encoder has a 1x1 classifier, which only two-stage training uses."""
    fcu_dropout: float = 0.03
    """Probability of channel dropout in the encoder's FCUs."""
    pfcu_dropout: float = 0.3
    """Probability of channel dropout in the PFCU branches."""

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.pool_kernel not in (2, 3) or self.head_kernel not in (2, 3):
            raise ValueError("pool_kernel and head_kernel must be 2 or 3")


class DownsamplerBlock(nn.Module):
    """Stride-2 convolution and max-pool, concatenated to ``out_channels`` at half the height and width."""

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
    """Factorized convolution unit: two (k x 1, 1 x k) pairs with a residual connection."""

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
    """Parallel factorized convolution unit: three dilated branches added to the residual.

    With ``config.shared_branch_norm``, as in the authors' code, ``bn2`` is one module for all three branches;
    otherwise they have ``bn2_22``, ``bn2_25`` and ``bn2_29``.
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
        branch: Tensor = self.dropout(self.branch_norm(dilation)(y))
        return branch


class UpsamplerBlock(nn.Module):
    """Transposed 3x3 convolution, BN and ReLU; doubles height and width."""

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
    """Encoder: three downsamplers with FCUs and PFCUs between them."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.initial_block = DownsamplerBlock(3, 16, config)
        self.layers = nn.Sequential(
            *(FCU(16, 3, config, dropout=config.fcu_dropout) for _ in range(3)),
            DownsamplerBlock(16, 64, config),
            *(FCU(64, 5, config, dropout=config.fcu_dropout) for _ in range(2)),
            DownsamplerBlock(64, 128, config),
            *(PFCU(128, config) for _ in range(3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) float to features (N, 128, H/8, W/8)."""
        features: Tensor = self.layers(self.initial_block(x))
        return features


class Decoder(nn.Module):
    """Decoder: upsamplers with FCUs between them, and the last transposed convolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            UpsamplerBlock(128, 64, config),
            *(FCU(64, 5, config) for _ in range(2)),
            UpsamplerBlock(64, 16, config),
            *(FCU(16, 3, config) for _ in range(2)),
        )
        kernel, padding = config.head_kernel, config.head_kernel // 3
        self.output_conv = nn.ConvTranspose2d(
            16, config.num_classes, kernel, stride=2, padding=padding, output_padding=padding
        )
        if kernel == 3:
            self.output_bn = nn.BatchNorm2d(config.num_classes, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, 128, H/8, W/8) to logits (N, K, H, W)."""
        logits: Tensor = self.output_conv(self.layers(x))
        return torch.relu(self.output_bn(logits)) if hasattr(self, "output_bn") else logits


class ESNet(nn.Module):
    """The network; with the default configuration its state dict has the keys of the authors' code."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.encoder_head:
            self.encoder_output_conv = nn.Conv2d(128, config.num_classes, 1)

    def forward(self, x: Tensor, only_encoder: bool = False) -> Tensor:
        """Compute the logits of every pixel.

        Args:
            x: Normalised RGB images (N, 3, H, W) float, H and W multiples of 8.
            only_encoder: Classify the encoder's features instead, for two-stage training; needs
                ``config.encoder_head``.

        Returns:
            Logits (N, K, H, W), or (N, K, H/8, W/8) with ``only_encoder``.
        """
        features = self.encoder(x)
        logits: Tensor = (self.encoder_output_conv if only_encoder else self.decoder)(features)
        return logits


def normalise(images_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute (images / 255 - mean) / std on the device of the images.

    Args:
        images_NHWC: RGB, uint8 (N, H, W, 3).
        mean: RGB mean on the 0-1 scale.
        std: RGB standard deviation on the 0-1 scale.

    Returns:
        float32 (N, 3, H, W) in channels-last memory format.
    """
    scaled = images_NHWC.permute(0, 3, 1, 2).float().div(255)
    shift, scale = (scaled.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (scaled - shift) / scale


def _factorized_pair(
    channels: int, kernel: int, dilation: int, config: NetworkConfig
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Make a (k x 1) and a (1 x k) convolution that keep height and width."""
    padding = (kernel - 1) // 2 * dilation
    conv = partial(nn.Conv2d, channels, channels, bias=config.conv_bias)
    return (
        conv((kernel, 1), padding=(padding, 0), dilation=(dilation, 1)),
        conv((1, kernel), padding=(0, padding), dilation=(1, dilation)),
    )
