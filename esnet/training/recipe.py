"""Recipes: all that decides how a network is trained, in one frozen value, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from esnet.data.augment import Augmentation
from esnet.errors import TrainingError

QUANTIZATIONS = ("tensorrt", "cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train. What depends on the machine (devices, precision, workers) is not part of it."""

    name: str
    """Name on the command line."""
    epochs: int
    """Passes over the data with the whole network."""
    encoder_epochs: int = 0
    """Passes before those with the encoder and its own 1x1 head alone, against labels at an eighth."""
    batch_size: int
    """Pictures a step, over all devices together."""
    size_hw: tuple[int, int] | None = None
    """Size to which every picture is brought first; ``None`` keeps the dataset's own."""
    augmentation: Augmentation
    """What random views look like."""
    learning_rate: float
    """Peak learning rate of Adam."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its peak."""
    poly_power: float = 0.9
    """The learning rate falls as (1 - progress) to this power, to 0."""
    weight_decay: float
    """L2 penalty in Adam's gradient."""
    class_weight_offset: float | None = 1.10
    """c of the class weights 1 / ln(c + p), p a class's share of the pixels; ``None`` weighs all alike."""
    lovasz_weight: float = 0.0
    """Weight of the Lovász-softmax loss beside the cross-entropy, which has 1."""
    lovasz_stride: int = 4
    """The Lovász loss looks at every such pixel in both directions."""
    ema_decay: float | None = None
    """Decay a step of the moving average that is validated and kept; ``None`` keeps the last weights."""
    quantization: str | None = None
    """One of ``QUANTIZATIONS``, the schemes of ``esnet-export quantize``: train and validate with its
    rounding, batch statistics frozen and no dropout. ``None`` trains in float."""

    def __post_init__(self) -> None:
        height, width = self.augmentation.crop_hw
        if height % 8 or width % 8 or min(height, width) < 8:
            raise TrainingError(
                f"crop {height}x{width} must be multiples of 8: ESNet halves its input three times"
            )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise TrainingError(f"learning rate must lie between 0 and 1, got {self.learning_rate}")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise TrainingError(
                f"unknown quantization {self.quantization!r}",
                hint=f"schemes: {', '.join(QUANTIZATIONS)}",
            )
        if self.quantization and self.encoder_epochs:
            raise TrainingError(
                f"{self.encoder_epochs} epochs of the encoder alone cannot be quantization-aware",
                hint="fine-tune the whole network: encoder_epochs 0",
            )

    @property
    def all_epochs(self) -> int:
        """Passes over the data, both stages together."""
        return self.encoder_epochs + self.epochs

    def as_dict(self) -> dict[str, Any]:
        """Get all settings as plain values, for ``config.json``."""
        return dataclasses.asdict(self)


def paper() -> Recipe:
    """ESNet's own recipe for Cityscapes at half size, encoder first.

    Source: arXiv 1906.09826, section 4.2; class weights as in ERFNet (Romera et al., 2018).
    """
    return Recipe(
        name="paper",
        epochs=150,
        encoder_epochs=150,
        batch_size=4,
        size_hw=(512, 1024),
        augmentation=Augmentation(crop_hw=(512, 1024), scale=(0.5, 2.0)),
        learning_rate=5e-4,
        weight_decay=1e-4,
    )


def cityscapes() -> Recipe:
    """For Cityscapes on a current GPU: larger batches, colour jitter, moving average, mIoU in the loss."""
    return Recipe(
        name="cityscapes",
        epochs=300,
        batch_size=12,
        size_hw=(512, 1024),
        augmentation=_jittered((512, 1024), scale=(0.5, 2.0)),
        learning_rate=1e-3,
        warmup_steps=500,
        weight_decay=1e-4,
        lovasz_weight=1.0,
        ema_decay=0.999,
    )


def camvid() -> Recipe:
    """For CamVid at 360x480; what the shipped weights were trained with."""
    return Recipe(
        name="camvid",
        epochs=200,
        batch_size=8,
        augmentation=_jittered((320, 432), scale=(0.6, 2.0)),
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=1e-4,
        lovasz_weight=1.0,
        ema_decay=0.998,
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = MappingProxyType(
    {"camvid": camvid, "cityscapes": cityscapes, "paper": paper}
)


def recipe_named(name: str) -> Recipe:
    """Get a recipe by name.

    Raises:
        TrainingError: No such recipe.
    """
    if name not in RECIPES:
        raise TrainingError(f"unknown recipe {name!r}", hint=f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()


def quantization_aware(recipe: Recipe) -> Recipe:
    """Turn a recipe into a short fine-tuning for INT8, from weights that are trained already.

    The rounding is TensorRT's, the coarser of the two schemes: weights that bear it bear the other as well.
    """
    return replace(
        recipe,
        quantization="tensorrt",
        epochs=3,
        encoder_epochs=0,
        learning_rate=1e-4,
        warmup_steps=0,
    )


def _jittered(crop_hw: tuple[int, int], *, scale: tuple[float, float]) -> Augmentation:
    return Augmentation(
        crop_hw=crop_hw,
        scale=scale,
        stretch=0.1,
        rotation_deg=3,
        brightness=0.12,
        contrast=0.25,
        saturation=0.4,
        tint=0.08,
    )
