"""Accuracy reports: text for the screen and a plot of the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.accuracy.evaluate import AccuracyReport
from benchmarks.report.tables import TextTable, print_facts, rich_table
from runtime.files import atomic_path


def print_accuracy(reports: Sequence[AccuracyReport], console: Console | None = None) -> None:
    """Print the models, a table of IoU per class, and mIoU and pixel accuracy of each model."""
    console = console or Console(highlight=False)
    split, first = reports[0].split, reports[0].matrix
    numbers = [f"({n})" if len(reports) > 1 else "" for n in range(1, len(reports) + 1)]
    facts = {"data": f"{split.dataset} {split.split}, {reports[0].num_images} images"}
    for number, report in zip(numbers, reports, strict=True):
        model = report.predictor
        text = f"{model.description}, at {model.size_text}, sha256 {model.sha256}"
        facts[f"model {number}".rstrip()] = text
    print_facts(console, facts)
    console.print()
    names, pixels = split.label_set.class_names, first.counts.sum(1)
    columns = [pixels / max(1, pixels.sum()), *(report.matrix.iou_per_class for report in reports)]
    rows = [[name, *map(_percent, values)] for name, *values in zip(names, *columns, strict=True)]
    titles = (
        "class",
        "share of pixels, %",
        *(f"IoU {number}".strip() + ", %" for number in numbers),
    )
    console.print(rich_table(TextTable("IoU per class", titles, rows)))
    for number, report in zip(numbers, reports, strict=True):
        matrix = report.matrix
        line = f"{number} mIoU {_percent(matrix.miou)} %, ".lstrip()
        line += f"pixel accuracy {_percent(matrix.pixel_accuracy)} %"
        if report is not reports[0]:
            line += f"; mIoU over (1): {100 * (matrix.miou - first.miou):+.2f}"
            gains = 100 * (matrix.iou_per_class - first.iou_per_class)
            if not np.isnan(gains).all():
                worst = int(np.nanargmin(gains))
                line += f", largest loss of a class: {names[worst]} {gains[worst]:+.2f}"
        console.print(line, markup=False, soft_wrap=True)


def draw_confusion(report: AccuracyReport, path: Path) -> None:
    """Draw the confusion matrix; each row is a true class and sums to 100 %."""
    from matplotlib.figure import Figure

    counts, names = report.matrix.counts.astype(float), report.split.label_set.class_names
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.5 + 0.45 * len(shares)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    data = f"{report.split.dataset} {report.split.split}"
    title = f"{data}, mIoU {100 * report.matrix.miou:.2f} %"
    axis.set(xlabel="predicted", ylabel="true", title=title)
    for row, column in np.argwhere(shares >= 0.5):
        value = shares[row, column]
        colour = "white" if value > 60 else "black"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axis, shrink=0.8, label="% of the true class")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _percent(share: float) -> str:
    return "n/a" if np.isnan(share) else f"{100 * share:.2f}"
