"""Show an accuracy report: a table for people, JSON for machines, the confusion matrix as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.accuracy.evaluate import AccuracyReport
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


def print_accuracies(reports: Sequence[AccuracyReport], console: Console | None = None) -> None:
    """Print several models on one split side by side, each held against the first."""
    console = console or Console(highlight=False)
    first = reports[0]
    console.print(f"{first.dataset} {first.split}, {first.num_images} images", markup=False)
    for number, report in enumerate(reports, start=1):
        line = f"  ({number})  {report.model}  sha256 {report.sha256[:12]}"
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("IoU, %")
    for number in range(1, len(reports) + 1):
        table.add_column(f"({number})", justify="right")
    columns = [report.matrix.iou_per_class for report in reports]
    for index, name in enumerate(first.class_names):
        table.add_row(escape(name), *(_percent(column[index]) for column in columns))
    table.add_section()
    table.add_row("mIoU", *(_percent(report.miou) for report in reports))
    table.add_row("pixel accuracy", *(_percent(r.matrix.pixel_accuracy) for r in reports))
    gains = [f"{100 * (report.miou - first.miou):+.2f}" for report in reports]
    table.add_row("mIoU over (1)", "", *gains[1:])
    worst = [_worst_class(report, first) for report in reports]
    table.add_row("class that loses most", "", *worst[1:])
    console.print(table)


def _percent(share: float) -> str:
    return "n/a" if np.isnan(share) else f"{100 * share:.2f}"


def _worst_class(report: AccuracyReport, reference: AccuracyReport) -> str:
    gains = report.matrix.iou_per_class - reference.matrix.iou_per_class
    if np.isnan(gains).all():
        return "n/a"
    index = int(np.nanargmin(gains))
    return f"{escape(report.class_names[index])} {100 * gains[index]:+.2f}"


def write_accuracy_json(reports: Sequence[AccuracyReport], path: Path) -> None:
    """Write the whole report, or a list of them under ``reports``, whole or not at all."""
    plain = [report.as_dict() for report in reports]
    content = plain[0] if len(plain) == 1 else {"reports": plain}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


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
