"""Recipes: the hyperparameters of a training run, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from esnet.data.augment import Augmentation
from esnet.errors import TrainingError

QUANTIZATIONS = ("tensorrt", "cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Hyperparameters. Hardware settings (devices, precision, workers) are not part of a recipe."""

    name: str
    """Name on the command line."""
    epochs: int
    """Epochs that train the whole network."""
    encoder_epochs: int = 0
    """Epochs before these that train only the encoder and its 1x1 head, on labels at 1/8 of the size."""
    batch_size: int
    """Images per step, over all devices."""
    size_hw: tuple[int, int] | None = None
    """Size to which every image is resized first; ``None`` keeps its own size."""
    augmentation: Augmentation
    """Random augmentation of the training images."""
    learning_rate: float
    """Peak learning rate of Adam."""
    warmup_steps: int = 0
    """Steps of the linear warm-up of the learning rate."""
    poly_power: float = 0.9
    """Exponent of the poly schedule: the learning rate falls to 0 as (1 - progress) ** poly_power."""
    weight_decay: float
    """Weight decay of Adam (L2 penalty)."""
    class_weight_offset: float | None = 1.10
    """c in the class weights 1 / ln(c + p), p a class's fraction of the pixels; ``None``: all weights 1."""
    lovasz_weight: float = 0.0
    """Weight of the Lovász-softmax loss; the weight of the cross-entropy is 1."""
    lovasz_stride: int = 4
    """Pixel stride of the Lovász loss in both directions."""
    ema_decay: float | None = None
    """Decay per step of the exponential moving average, whose weights are validated and saved; ``None``: no
    average."""
    quantization: str | None = None
    """One of ``QUANTIZATIONS``, the schemes of ``esnet-export quantize``: train and validate with fake
    quantization, frozen BN statistics and no dropout. ``None`` trains in float."""

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
            raise TrainingError(f"learning rate must be between 0 and 1, got {self.learning_rate}")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise TrainingError(
                f"unknown quantization {self.quantization!r}",
                hint=f"schemes: {', '.join(QUANTIZATIONS)}",
            )
        if self.quantization and self.encoder_epochs:
            raise TrainingError(
                f"{self.encoder_epochs} epochs of encoder training cannot be quantization-aware",
                hint="fine-tune the whole network: --encoder-epochs 0",
            )

    @property
    def total_epochs(self) -> int:
        """Epochs of both stages."""
        return self.encoder_epochs + self.epochs


def paper() -> Recipe:
    """Get the recipe of the ESNet paper: Cityscapes at half size, encoder first.

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
    """Get the recipe for Cityscapes on a current GPU: larger batches, colour jitter, EMA, Lovász loss."""
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
    """Get the recipe for CamVid at 360x480, with which the shipped weights were trained."""
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


RECIPES = {"camvid": camvid, "cityscapes": cityscapes, "paper": paper}


def recipe_named(name: str) -> Recipe:
    """Get a recipe by name.

    Raises:
        TrainingError: There is no such recipe.
    """
    if name not in RECIPES:
        raise TrainingError(f"unknown recipe {name!r}", hint=f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()


def quantization_aware(recipe: Recipe) -> Recipe:
    """Turn a recipe into a short INT8 fine-tuning of trained weights.

    It uses TensorRT's scheme, the coarser of the two: weights tuned for it also keep their accuracy with the
    other.
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
