"""Show an accuracy report: a table for people, JSON for machines, the confusion matrix as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.accuracy import AccuracyReport
from runtime.files import atomic_path


def print_accuracy(report: AccuracyReport, console: Console | None = None) -> None:
    """Print what was evaluated, IoU by class, mIoU and pixel accuracy."""
    console = console or Console(highlight=False)
    size = f"{report.size_hw[0]}x{report.size_hw[1]}" if report.size_hw else "their own size"
    for key, value in {
        "model": report.model,
        "sha256": report.sha256,
        "data": f"{report.dataset} {report.split}, {report.num_images} images, at {size}",
    }.items():
        console.print(f"{key:>8}  {value}", markup=False, soft_wrap=True)
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    table.add_column("share of pixels", justify="right")
    pixels = report.matrix.counts.sum(1)
    for name, iou, count in zip(
        report.class_names, report.matrix.iou_per_class, pixels, strict=True
    ):
        shown = "n/a" if np.isnan(iou) else f"{100 * iou:.2f} %"
        table.add_row(escape(name), shown, f"{100 * count / max(1, pixels.sum()):.2f} %")
    console.print(table)
    accuracy = report.matrix.pixel_accuracy
    console.print(
        f"mIoU {100 * report.miou:.2f} %, pixel accuracy {100 * accuracy:.2f} %", markup=False
    )


def write_accuracy_json(report: AccuracyReport, path: Path) -> None:
    """Write the whole report, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")


def draw_confusion(report: AccuracyReport, path: Path) -> None:
    """Draw the confusion matrix, each row a true class that sums to 100 %."""
    from matplotlib.figure import Figure

    counts = report.matrix.counts.astype(float)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.5 + 0.45 * len(shares)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(shares))
    axis.set_xticks(ticks, report.class_names, rotation=45, ha="right")
    axis.set_yticks(ticks, report.class_names)
    axis.set(
        xlabel="predicted",
        ylabel="true",
        title=f"{report.dataset} {report.split}, mIoU {100 * report.miou:.2f} %",
    )
    for row, column in np.argwhere(shares >= 0.5):
        value = shares[row, column]
        colour = "white" if value > 60 else "black"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axis, shrink=0.8, label="% of the true class")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
