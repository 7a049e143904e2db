"""The three public ESNet implementations: how each differs, and what each calls its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from esnet.model import PFCU_DILATIONS, ESNet, NetworkConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One public implementation of ESNet."""

    name: str
    """Short name, as shown to the user and stored in the card."""
    source: str
    """Where its code and weights are published."""
    config: Callable[[int], NetworkConfig]
    """Number of classes to the structure of its network."""
    blocks: Mapping[str, str]
    """Our block path to theirs."""
    units: Mapping[str, Mapping[str, str]]
    """By kind of block: our module inside it to theirs; modules not listed keep their name."""
    mean: tuple[float, float, float]
    """RGB mean its training subtracts, on the 0-1 scale."""
    std: tuple[float, float, float]
    """RGB deviation its training divides by, on the 0-1 scale."""

    def keys(self, network: ESNet) -> dict[str, str]:
        """Map each key of our state dict to the family's own name for it."""
        return {key: self._their_key(key) for key in network.state_dict()}

    def expected_shapes(self, num_classes: int) -> dict[str, tuple[int, ...]]:
        """List the family's own keys and shapes for this many classes."""
        with torch.device("meta"):
            network = ESNet(self.config(num_classes))
        return {
            self._their_key(key): tuple(value.shape) for key, value in network.state_dict().items()
        }

    @property
    def head_key(self) -> str:
        """The family's key of the last layer's weight (16, K, k, k), which tells the number of classes."""
        return self._their_key("decoder.output_conv.weight")

    def share_of_keys(self, tensors: Mapping[str, Tensor]) -> float:
        """Measure how many of the family's keys are among these, 0 to 1."""
        expected = _expected_keys(self)
        return len(expected & tensors.keys()) / len(expected)

    def _their_key(self, key: str) -> str:
        block = max((b for b in self.blocks if key.startswith(f"{b}.")), key=len, default=None)
        if block is None:
            return key
        unit, _, parameter = key[len(block) + 1 :].rpartition(".")
        unit = self.units[_BLOCK_KINDS[block]].get(unit, unit)
        return ".".join(part for part in (self.blocks[block], unit, parameter) if part)


@cache
def _expected_keys(family: Family) -> frozenset[str]:
    return frozenset(family.expected_shapes(1))


def _authors_config(num_classes: int) -> NetworkConfig:
    return NetworkConfig(num_classes=num_classes)


def _pytorchcv_config(num_classes: int) -> NetworkConfig:
    return NetworkConfig(
        num_classes=num_classes, shared_branch_norm=False, branch_sum="stacked", encoder_head=False
    )


def _zh320_config(num_classes: int) -> NetworkConfig:
    return NetworkConfig(
        num_classes=num_classes,
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
    )


# Our blocks in the order in which a frame passes them, each with its kind.
_BLOCK_KINDS: Mapping[str, str] = MappingProxyType(
    {
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
)


def _named(*theirs: str) -> dict[str, str]:
    """Pair our blocks with a family's, in order."""
    return dict(zip(_BLOCK_KINDS, theirs, strict=True))


def _pair(number: str, column: str, row: str, norm: str) -> dict[str, str]:
    """Name a factorized pair: its (k x 1) and (1 x k) convolutions and the BN after them."""
    return {f"conv3x1_{number}": column, f"conv1x3_{number}": row, f"bn{number}": norm}


def _branch(dilation: int, column: str, row: str, norm: str) -> dict[str, str]:
    """Name a PFCU branch that owns its BN."""
    return {**_pair(f"2{dilation}", column, row, norm), f"bn2_2{dilation}": norm}


AUTHORS = Family(
    name="authors",
    source="github.com/xiaoyufenfei/ESNet",
    config=_authors_config,
    blocks={},
    units={},
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)

PYTORCHCV = Family(
    name="pytorchcv",
    source="pypi.org/project/pytorchcv, esnet_cityscapes",
    config=_pytorchcv_config,
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
            **{
                ours: f"branches.branch{branch}.conv.{theirs}"
                for branch, dilation in enumerate(PFCU_DILATIONS, start=1)
                for ours, theirs in _branch(
                    dilation, "lw_conv.conv", "rw_conv.conv", "rw_conv.bn"
                ).items()
            },
        },
        "upsampler": {},
        "head": {"output_conv": "head"},
    },
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

ZH320 = Family(
    name="zh320",
    source="github.com/zh320/realtime-semantic-segmentation-pytorch",
    config=_zh320_config,
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
            **{
                ours: f"conv_{side}.{theirs}"
                for side, dilation in zip(("left", "mid", "right"), PFCU_DILATIONS, strict=True)
                for ours, theirs in _branch(dilation, "0", "2.0", "2.1").items()
            },
        },
        "upsampler": {"conv": "up_conv.0", "bn": "up_conv.1"},
        "head": {"output_conv": "up_conv.0", "output_bn": "up_conv.1"},
    },
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (AUTHORS, PYTORCHCV, ZH320)}
)
