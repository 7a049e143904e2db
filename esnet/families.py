"""The three public ESNet implementations: their network configurations and state dict keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from esnet.model import ESNet, NetworkConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One public implementation of ESNet."""

    name: str
    """Name shown to the user and stored in the model card."""
    config: Callable[[int], NetworkConfig]
    """Function from the number of classes to the network configuration."""
    blocks: Mapping[str, str]
    """Path of a block in our network to its path in theirs."""
    units: Mapping[str, Mapping[str, str]]
    """By kind of block: name of a module in our block to its name in theirs; others keep their names."""
    mean: tuple[float, float, float]
    """RGB mean that its training subtracts, on the 0-1 scale."""
    std: tuple[float, float, float]
    """RGB standard deviation that its training divides by, on the 0-1 scale."""

    def keys(self, network: ESNet) -> dict[str, str]:
        """Map each key of our state dict to the family's key."""
        return {key: self._their_key(key) for key in network.state_dict()}

    def expected_shapes(self, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Get the family's state dict keys and shapes for this many classes."""
        with torch.device("meta"):
            network = ESNet(self.config(num_classes))
        return {
            self._their_key(key): tuple(value.shape) for key, value in network.state_dict().items()
        }

    @property
    def head_key(self) -> str:
        """The family's key of the last layer's weight, (16, K, k, k)."""
        return self._their_key("decoder.output_conv.weight")

    def share_of_keys(self, tensors: Mapping[str, Tensor]) -> float:
        """Compute the fraction of the family's keys that a state dict contains, 0 to 1."""
        return len(self._keys & tensors.keys()) / len(self._keys)

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.expected_shapes(1))

    def _their_key(self, key: str) -> str:
        block = max((b for b in self.blocks if key.startswith(f"{b}.")), key=len, default=None)
        if block is None:
            return key
        unit, _, parameter = key[len(block) + 1 :].rpartition(".")
        unit = self.units[_BLOCK_KINDS[block]].get(unit, unit)
        return ".".join(part for part in (self.blocks[block], unit, parameter) if part)


# Path of each block in our network to its kind, in order of execution.
_BLOCK_KINDS = {
    "encoder.initial_block": "downsampler",
    **{f"encoder.layers.{i}": "fcu" for i in (0, 1, 2)},
    "encoder.layers.3": "downsampler",
    **{f"encoder.layers.{i}": "fcu" for i in (4, 5)},
    "encoder.layers.6": "downsampler",
    **{f"encoder.layers.{i}": "pfcu" for i in (7, 8, 9)},
    "decoder.layers.0": "upsampler",
    **{f"decoder.layers.{i}": "fcu" for i in (1, 2)},
    "decoder.layers.3": "upsampler",
    **{f"decoder.layers.{i}": "fcu" for i in (4, 5)},
    "decoder": "head",
}


def _named(*theirs: str) -> dict[str, str]:
    """Map our blocks to a family's blocks, given in order."""
    return dict(zip(_BLOCK_KINDS, theirs, strict=True))


def _pair(number: str, column: str, row: str, norm: str) -> dict[str, str]:
    """Map the names of a factorized pair: the (k x 1) and (1 x k) convolutions and their BN."""
    return {f"conv3x1_{number}": column, f"conv1x3_{number}": row, f"bn{number}": norm}


def _branch(dilation: int, path: str, column: str, row: str, norm: str) -> dict[str, str]:
    """Map the names of a PFCU branch with its own BN."""
    names = {f"conv3x1_2{dilation}": column, f"conv1x3_2{dilation}": row, f"bn2_2{dilation}": norm}
    return {ours: f"{path}.{theirs}" for ours, theirs in names.items()}


AUTHORS = Family(  # github.com/xiaoyufenfei/ESNet
    name="authors",
    config=NetworkConfig,
    blocks={},
    units={},
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)

PYTORCHCV = Family(  # pypi.org/project/pytorchcv, esnet_cityscapes
    name="pytorchcv",
    config=partial(
        NetworkConfig, shared_branch_norm=False, branch_sum="stacked", encoder_head=False
    ),
    blocks=_named(
        *(f"encoder.stage1.unit{i}" for i in (1, 2, 3, 4)),
        *(f"encoder.stage2.unit{i}" for i in (1, 2, 3)),
        *(f"encoder.stage3.unit{i}" for i in (1, 2, 3, 4)),
        *(f"decoder.stage1.unit{i}" for i in (1, 2, 3)),
        *(f"decoder.stage2.unit{i}" for i in (1, 2, 3)),
        "",
    ),
    units={
        "downsampler": {"bn": "norm_activ.bn"},
        "fcu": {
            **_pair("1", "conv1.lw_conv.conv", "conv1.rw_conv.conv", "conv1.rw_conv.bn"),
            **_pair("2", "conv2.lw_conv.conv", "conv2.rw_conv.conv", "conv2.rw_conv.bn"),
        },
        "pfcu": {
            **_pair("1", "conv1.lw_conv.conv", "conv1.rw_conv.conv", "conv1.rw_conv.bn"),
            **_branch(2, "branches.branch1.conv", "lw_conv.conv", "rw_conv.conv", "rw_conv.bn"),
            **_branch(5, "branches.branch2.conv", "lw_conv.conv", "rw_conv.conv", "rw_conv.bn"),
            **_branch(9, "branches.branch3.conv", "lw_conv.conv", "rw_conv.conv", "rw_conv.bn"),
        },
        "upsampler": {},
        "head": {"output_conv": "head"},
    },
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

ZH320 = Family(  # github.com/zh320/realtime-semantic-segmentation-pytorch
    name="zh320",
    config=partial(
        NetworkConfig,
        conv_bias=False,
        norm_after_concat=False,
        pool_kernel=3,
        shared_branch_norm=False,
        branch_sum="branches first",
        norm_eps=1e-5,
        head_kernel=3,
        encoder_head=False,
        fcu_dropout=0.0,
        pfcu_dropout=0.0,
    ),
    blocks=_named(
        "block1_down",
        *(f"block1.{i}" for i in (0, 1, 2)),
        "block2_down",
        *(f"block2.{i}" for i in (0, 1)),
        "block3_down",
        *(f"block3.{i}" for i in (0, 1, 2)),
        "block4_up",
        *(f"block4.{i}" for i in (0, 1)),
        "block5_up",
        *(f"block5.{i}" for i in (0, 1)),
        "full_conv",
    ),
    units={
        "downsampler": {"conv": "conv.0", "bn": "conv.1"},
        "fcu": {
            **_pair("1", "conv.0", "conv.2.0", "conv.2.1"),
            **_pair("2", "conv.3", "conv.5.0", "conv.5.1"),
        },
        "pfcu": {
            **_pair("1", "conv0.0", "conv0.2.0", "conv0.2.1"),
            **_branch(2, "conv_left", "0", "2.0", "2.1"),
            **_branch(5, "conv_mid", "0", "2.0", "2.1"),
            **_branch(9, "conv_right", "0", "2.0", "2.1"),
        },
        "upsampler": {"conv": "up_conv.0", "bn": "up_conv.1"},
        "head": {"output_conv": "up_conv.0", "output_bn": "up_conv.1"},
    },
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

FAMILIES = {family.name: family for family in (AUTHORS, PYTORCHCV, ZH320)}
