"""What a run writes down while it trains: a CSV row an epoch, a picture of the curves, lines to read."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

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
    """Keeps ``metrics.csv`` and ``curve.png`` of a run folder, across restarts."""

    def __init__(self, run_dir: Path, *, prints_lines: bool) -> None:
        """Continue the folder's log where there is one.

        Args:
            run_dir: The run's folder.
            prints_lines: Whether to print a line an epoch, for where no progress bar is seen.
        """
        self.csv_path, self.curve_path = run_dir / "metrics.csv", run_dir / "curve.png"
        self.prints_lines = prints_lines
        self.rows: list[dict[str, str]] = []
        self.started = 0.0
        self.validated = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the rows of the epochs that will not be trained again; the trainer knows them by now."""
        rows = _read_rows(self.csv_path)
        self.rows = [row for row in rows if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock: throughput is that of training alone."""
        self._stop_clock()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch down."""
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
        _write_rows(self.csv_path, self.rows)
        if "val_miou" in values:
            draw_curve(self.rows, self.curve_path)
        if self.prints_lines:
            named = [f"{name} {values[name]}" for name in COLUMNS[1:] if name in values]
            print(f"epoch {values['epoch']}/{trainer.max_epochs}  {'  '.join(named)}", flush=True)

    validated = False

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember that the metrics at hand belong to this epoch."""
        self.validated = True

    def _stop_clock(self) -> float:
        """Get the seconds of training since the epoch began; the first call of an epoch counts."""
        if self.started > 0:
            self.started = -max(time.perf_counter() - self.started, 1e-9)
        return -self.started


def draw_curve(rows: list[dict[str, str]], path: Path) -> None:
    """Draw loss and validation mIoU over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    for axis, name, colour, scale in (
        (left, "train_loss", "tab:gray", 1),
        (right, "val_miou", "tab:blue", 100),
    ):
        points = [(int(row["epoch"]), scale * float(row[name])) for row in rows if row.get(name)]
        axis.plot(
            *zip(*points, strict=True), color=colour, marker="." if len(points) < 60 else None
        )
    left.set(xlabel="epoch", ylabel="training loss (grey)")
    right.set(ylabel="validation mIoU, % (blue)")
    right.grid(alpha=0.3)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
