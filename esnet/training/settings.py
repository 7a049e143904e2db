"""Settings and result of a training run; no heavy imports."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esnet.labels import LabelSet
from esnet.training.recipe import Recipe

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """Data, recipe, initial weights and hardware of a run."""

    dataset: str
    """A key of ``esnet.data.datasets.DATASETS``."""
    data_dir: Path
    """The dataset's folder."""
    run_dir: Path
    """The run's folder; created, or resumed if it holds a run with the same settings."""
    recipe: Recipe
    """Hyperparameters."""
    label_set: LabelSet | None = None
    """Classes of the masks; ``None`` takes those of the dataset."""
    train_split: str = "train"
    """Split to train on, or path of a list file."""
    val_split: str = "val"
    """Split to validate on, or path of a list file."""
    validate_every: int = 5
    """Epochs between validations; the last epoch is always validated."""
    init: str | None = None
    """Initial weights, a file or the name of shipped weights; ``None`` trains from scratch."""
    seed: int = 0
    """Random seed."""
    accelerator: Accelerator = "auto"
    """Kind of device; ``auto`` is a GPU if there is one."""
    devices: int = 1
    """Number of GPUs, or of CPU processes; each trains on its share of every batch."""
    precision: Precision = "auto"
    """Arithmetic; ``auto`` is bf16 if supported natively, else fp16 on GPUs and fp32 on CPUs."""
    workers: int = 1
    """Processes per device that load and augment images."""
    show_progress: bool = False
    """True to show a progress bar, false to print one line per epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """Outcome of a run."""

    run_dir: Path
    """The run's folder."""
    epochs: int
    """Epochs trained, including those before a resume."""
    best_miou: float | None
    """Best validation mIoU, 0 to 1; ``None`` if the run was never validated."""

    def as_text(self) -> str:
        """Format the outcome and the next command, one line each."""
        best = "not validated" if self.best_miou is None else f"best mIoU {self.best_miou:.4f}"
        command = shlex.join(["esnet-export", "to-onnx", str(self.run_dir / "best.ckpt")])
        return f"trained   {self.epochs} epochs, {best}\nnext      {command}"
