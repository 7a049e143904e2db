"""ESNet as Lightning trains it: loss, validation, optimiser, and what the checkpoint says of itself."""

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
from torchmetrics.classification import MulticlassConfusionMatrix

from esnet.data.labelled import LabelledSplit
from esnet.metrics import ConfusionMatrix
from esnet.model import ESNet
from esnet.training.losses import cross_entropy, lovasz_softmax
from esnet.training.qat import FakeQuantization
from esnet.training.recipe import Recipe

METADATA_KEY = "esnet"
_RANGES_KEY = "quantization_ranges"
_STATE_KEYS = ("state_dict", "current_model_state")  # the second where weights are averaged


class SegmentationTask(L.LightningModule):
    """One network, one recipe. The state dict of its checkpoints holds ``network.`` and nothing else.

    Batches are (pictures uint8 (N, H, W, 3) RGB, labels uint8 (N, H, W)).
    """

    def __init__(
        self,
        network: ESNet,
        recipe: Recipe,
        split: LabelledSplit,
        weights: np.ndarray,
        metadata: Mapping[str, str],
        *,
        seed: int = 0,
    ) -> None:
        """Take the network to train.

        Args:
            network: The network; it is trained in place.
            recipe: How.
            split: The split to validate on; its label set says what is ignored.
            weights: One a class, float32 (K,).
            metadata: What checkpoints shall say of themselves.
            seed: Source of dropout and of the pixels that the Lovász loss looks at.
        """
        super().__init__()
        # Loaded weights come in evaluation mode, and Lightning keeps the mode it finds. Quantization-aware
        # training stays in it: ranges are those of inference, and what is learnt is to bear the rounding.
        network = network.train(recipe.quantization is None)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.quantization = (
            FakeQuantization(network, recipe.quantization) if recipe.quantization else None
        )
        self.recipe = recipe
        self.ignore_index = split.label_set.ignore_index
        self.metadata, self.seed = dict(metadata), seed
        self.class_weights: Tensor
        self.register_buffer("class_weights", torch.from_numpy(weights), persistent=False)
        self.confusion = MulticlassConfusionMatrix(
            len(weights), ignore_index=self.ignore_index, validate_args=False
        )

    @property
    def trains_encoder_alone(self) -> bool:
        """Whether the first of two stages is on."""
        return self.current_epoch < self.recipe.encoder_epochs

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """Score pictures uint8 (N, H, W, 3): logits (N, K, H, W), or an eighth of that in the first stage."""
        frames_NCHW = images_NHWC.permute(0, 3, 1, 2).float().div(255)
        if self.quantization is not None:
            quantized: Tensor = self.quantization(self.network, frames_NCHW)
            return quantized
        scored: Tensor = self.network(frames_NCHW, only_encoder=self.trains_encoder_alone)
        return scored

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Give the step its own chance, so that a run that is continued goes on as if never stopped."""
        entropy = (self.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the loss of one batch."""
        images, labels = batch
        logits = self(images).float()
        labels = _at_size(labels, logits.shape[2:]).long()
        loss = cross_entropy(logits, labels, self.class_weights, self.ignore_index)
        if self.recipe.lovasz_weight:
            stride = 1 if self.trains_encoder_alone else self.recipe.lovasz_stride
            jaccard = lovasz_softmax(logits, labels, self.ignore_index, stride=stride)
            loss = loss + self.recipe.lovasz_weight * jaccard
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True
        )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Count one picture, on the grid of its labels."""
        images, labels = batch
        predicted = self(images).argmax(1)
        self.confusion.update(_at_size(predicted, labels.shape[1:]), labels.long())

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and pixel accuracy over all pictures and devices."""
        matrix = ConfusionMatrix(len(self.class_weights), self.ignore_index)
        matrix.counts = self.confusion.compute().cpu().numpy()
        self.confusion.reset()
        for name, value in (("val_miou", matrix.miou), ("val_accuracy", matrix.pixel_accuracy)):
            self.log(name, torch.tensor(value, dtype=torch.float32), prog_bar=name == "val_miou")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with a poly learning rate, anew for each of the two stages."""
        recipe = self.recipe
        on_gpu = self.device.type == "cuda"
        optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=on_gpu,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        border = steps * recipe.encoder_epochs // recipe.all_epochs

        def factor(step: int) -> float:
            start, end = (0, border) if step < border else (border, steps)
            return poly_factor(step - start, end - start, recipe)

        schedule: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say on what the weights were trained and how well they do, and put ranges of INT8 aside."""
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
        """Put the ranges back, for a run that goes on."""
        for name, ranges in checkpoint.get(_RANGES_KEY, {}).items():
            checkpoint[name].update(ranges)


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and BN statistics, whose memory grows with the run."""

    def __init__(self, decay: float) -> None:
        """Average with ``decay`` a step, less while few steps were taken."""

        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            count = int(num_averaged)
            weight = 1 - min(decay, (1 + count) / (10 + count))
            if not averaged.is_floating_point():
                return current  # BN's counter of batches
            return torch.lerp(averaged, current.to(averaged.dtype), weight)

        super().__init__(avg_fn=average)


def poly_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Get the learning rate of a step as a share of its peak: linear warm-up, then poly to 0."""
    rise = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    left = max(0.0, 1 - step / max(steps, 1))
    return float(rise * left**recipe.poly_power)


def _take_ranges(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move what is not of the network out of a state dict: exporters read ordinary weights."""
    return {name: state.pop(name) for name in list(state) if not name.startswith("network.")}


def _at_size(labels_NHW: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """Bring labels to a size by nearest neighbour; the same tensor where nothing changes."""
    if labels_NHW.shape[1:] == size_hw:
        return labels_NHW
    resized = functional.interpolate(
        labels_NHW[:, None].float(), size=size_hw, mode="nearest-exact"
    )
    return resized[:, 0].to(labels_NHW.dtype)
