"""The log of a run: a CSV row per epoch, a plot of the curves, and printed lines."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from esnet.errors import TrainingError
from runtime.files import atomic_path

COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "val_miou",
    "val_accuracy",
    "images_per_second",
    "seconds",
)


class RunLog(Callback):
    """Writes ``metrics.csv`` and ``curve.png`` to a run's folder, and extends them after a resume."""

    def __init__(self, run_dir: Path, *, prints_lines: bool) -> None:
        """Log to a folder.

        Args:
            run_dir: The run's folder.
            prints_lines: True to print a line per epoch, for runs without a progress bar.
        """
        self.csv_path, self.curve_path = run_dir / "metrics.csv", run_dir / "curve.png"
        self.prints_lines = prints_lines
        self.rows: list[dict[str, str]] = []
        self.started = 0.0
        self.validated = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the rows of the epochs before the resume; later ones are trained again."""
        if self.csv_path.is_file():
            self.rows = read_rows(self.csv_path, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock: the throughput is that of training only."""
        self._stop_clock()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the current validation metrics as those of this epoch."""
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch."""
        if not trainer.is_global_zero:
            return
        seconds = self._stop_clock()
        loader: Any = trainer.train_dataloader
        num_images = len(loader.sampler) * trainer.world_size
        values = {
            "epoch": str(trainer.current_epoch + 1),
            "learning_rate": f"{trainer.optimizers[0].param_groups[0]['lr']:.3e}",
            "images_per_second": f"{num_images / seconds:.2f}",
            "seconds": f"{seconds:.1f}",
        }
        metrics = trainer.callback_metrics
        measured = ["train_loss"] + (["val_miou", "val_accuracy"] if self.validated else [])
        values |= {name: f"{float(metrics[name]):.4f}" for name in measured if name in metrics}
        self.validated = False
        self.rows.append(values)
        with atomic_path(self.csv_path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        if "val_miou" in values:
            with atomic_path(self.curve_path) as temporary:
                draw_curve(self.rows, temporary)
        if self.prints_lines:
            named = [f"{name} {values[name]}" for name in COLUMNS[1:] if name in values]
            print(f"epoch {values['epoch']}/{trainer.max_epochs}  {'  '.join(named)}", flush=True)

    def _stop_clock(self) -> float:
        """Get the seconds from the start of the epoch to the first call of this method in it."""
        if self.started > 0:
            self.started = -max(time.perf_counter() - self.started, 1e-9)
        return -self.started


def read_rows(path: Path, last_epoch: int) -> list[dict[str, str]]:
    """Read the rows of a log up to an epoch.

    Raises:
        TrainingError: The file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if row.keys() != set(COLUMNS):
                raise ValueError(f"a row has the columns {', '.join(map(str, row))}")
            [float(value) for value in row.values() if value]
        return [row for row in rows if int(row["epoch"]) <= last_epoch]
    except (ValueError, TypeError, csv.Error) as error:
        raise TrainingError(
            f"{path} is damaged: {error}", hint="delete it: the log starts again, the weights stay"
        ) from error


def draw_curve(rows: list[dict[str, str]], path: Path) -> None:
    """Plot training loss and validation mIoU over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    for axis, name, colour, scale in (
        (left, "train_loss", "tab:gray", 1),
        (right, "val_miou", "tab:blue", 100),
    ):
        points = [(int(row["epoch"]), scale * float(row[name])) for row in rows if row.get(name)]
        marker = "." if len(points) < 60 else None
        axis.plot(*zip(*points, strict=True), color=colour, marker=marker)
    left.set(xlabel="epoch", ylabel="training loss (grey)")
    right.set(ylabel="validation mIoU, % (blue)")
    right.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)
