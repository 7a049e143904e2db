"""ESNet as a Lightning module: loss, validation, optimiser, and checkpoint metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional

from esnet.families import AUTHORS
from esnet.metrics import ConfusionMatrix
from esnet.model import ESNet, normalise
from esnet.training.losses import cross_entropy, lovasz_softmax
from esnet.training.qat import FakeQuantization
from esnet.training.recipe import Recipe

METADATA_KEY = "esnet"
_RANGES_KEY = "quantization_ranges"
_STATE_KEYS = ("state_dict", "current_model_state")  # the second exists with weight averaging


class SegmentationTask(L.LightningModule):
    """Training and validation of one network; checkpoints contain only the state dict of ``network``.

    Batches are (images uint8 (N, H, W, 3) RGB, labels uint8 (N, H, W)).
    """

    def __init__(
        self,
        network: ESNet,
        recipe: Recipe,
        weights: np.ndarray,
        metadata: Mapping[str, str],
        *,
        ignore_index: int,
        seed: int,
    ) -> None:
        """Prepare a network for training.

        Args:
            network: The network; trained in place.
            recipe: Hyperparameters.
            weights: Class weights, float32 (K,).
            metadata: Metadata to store in checkpoints.
            ignore_index: Label of unlabelled pixels.
            seed: Random seed of dropout and of the Lovász loss.
        """
        super().__init__()
        # Lightning keeps the mode of the network, and loaded weights come in evaluation mode.
        # Quantization-aware training stays in it, so that the activation ranges are those of inference.
        network = network.train(recipe.quantization is None)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.quantization = (
            FakeQuantization(network, recipe.quantization) if recipe.quantization else None
        )
        self.recipe, self.ignore_index = recipe, ignore_index
        self.metadata, self.seed = dict(metadata), seed
        self.class_weights: Tensor
        self.register_buffer("class_weights", torch.from_numpy(weights), persistent=False)
        self.confusion = ConfusionMatrix(len(weights), ignore_index)

    @property
    def is_encoder_stage(self) -> bool:
        """True in the first of two stages, which trains only the encoder."""
        return self.current_epoch < self.recipe.encoder_epochs

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """Compute the logits (N, K, H, W), at 1/8 of the size in the encoder stage."""
        images_NCHW = normalise(images_NHWC, AUTHORS.mean, AUTHORS.std)
        if self.quantization is not None:
            quantized: Tensor = self.quantization(self.network, images_NCHW)
            return quantized
        logits: Tensor = self.network(images_NCHW, only_encoder=self.is_encoder_stage)
        return logits

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Reseed every step so that a resumed run matches an uninterrupted one."""
        entropy = (self.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the loss of one batch."""
        images, labels = batch
        logits = self(images).float()
        labels = _resize_labels(labels, logits.shape[2:]).long()
        loss = cross_entropy(logits, labels, self.class_weights, self.ignore_index)
        if self.recipe.lovasz_weight:
            stride = 1 if self.is_encoder_stage else self.recipe.lovasz_stride
            jaccard = lovasz_softmax(logits, labels, self.ignore_index, stride=stride)
            loss = loss + self.recipe.lovasz_weight * jaccard
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True
        )
        return loss

    def on_validation_epoch_start(self) -> None:
        """Set all counts to zero."""
        self.confusion = ConfusionMatrix(len(self.class_weights), self.ignore_index)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Count the pixels of one image, at the size of its labels."""
        images, labels = batch
        predicted = _resize_labels(self(images).argmax(1).to(torch.uint8), labels.shape[1:])
        self.confusion.update(labels.cpu().numpy(), predicted.cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and pixel accuracy over all images and devices."""
        counts = torch.from_numpy(self.confusion.counts).to(self.device)
        self.confusion.counts = self.trainer.strategy.reduce(counts, reduce_op="sum").cpu().numpy()
        miou, accuracy = self.confusion.miou, self.confusion.pixel_accuracy
        self.log("val_miou", torch.tensor(miou, dtype=torch.float32), prog_bar=True)
        self.log("val_accuracy", torch.tensor(accuracy, dtype=torch.float32))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make Adam with a poly learning rate that restarts for the second stage."""
        recipe = self.recipe
        optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=self.device.type == "cuda",
        )
        steps = int(self.trainer.estimated_stepping_batches)
        encoder_steps = steps * recipe.encoder_epochs // recipe.total_epochs

        def factor(step: int) -> float:
            start, end = (0, encoder_steps) if step < encoder_steps else (encoder_steps, steps)
            return poly_factor(step - start, end - start, recipe)

        schedule: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata, and move the activation ranges out of the state dicts."""
        measured = self.trainer.callback_metrics.get("val_miou")
        checkpoint[METADATA_KEY] = {
            **self.metadata,
            "epoch": str(self.current_epoch + 1),
            **({"val_miou": f"{float(measured):.4f}"} if measured is not None else {}),
        }
        if self.quantization is not None:
            states = {name: checkpoint[name] for name in _STATE_KEYS if name in checkpoint}
            checkpoint[_RANGES_KEY] = {name: _take_ranges(state) for name, state in states.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Move the activation ranges back into the state dicts."""
        for name, ranges in checkpoint.get(_RANGES_KEY, {}).items():
            checkpoint[name].update(ranges)


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and BN statistics, with a smaller decay in the first steps."""

    def __init__(self, decay: float) -> None:
        """Average with min(decay, (1 + n) / (10 + n)) at step n."""

        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            count = int(num_averaged)
            weight = 1 - min(decay, (1 + count) / (10 + count))
            if not averaged.is_floating_point():
                return current  # BN's counter of batches
            return torch.lerp(averaged, current.to(averaged.dtype), weight)

        super().__init__(avg_fn=average)


def poly_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Compute a step's learning rate as a fraction of the peak: linear warm-up times poly decay to 0."""
    rise = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    left = max(0.0, 1 - step / max(steps, 1))
    return float(rise * left**recipe.poly_power)


def _take_ranges(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move all but the network's entries out of a state dict, because exporters expect only weights."""
    return {name: state.pop(name) for name in list(state) if not name.startswith("network.")}


def _resize_labels(labels_NHW: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """Resize class maps with nearest neighbour; returns the same tensor if the size is equal."""
    if labels_NHW.shape[1:] == size_hw:
        return labels_NHW
    resized = functional.interpolate(
        labels_NHW[:, None].float(), size=size_hw, mode="nearest-exact"
    )
    return resized[:, 0].to(labels_NHW.dtype)
