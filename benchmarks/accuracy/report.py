"""Accuracy reports: text for the screen and a plot of the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.accuracy.evaluate import AccuracyReport
from benchmarks.report.tables import Document, TextTable
from esnet.metrics import ConfusionMatrix
from runtime.files import atomic_path, require_outputs


def document_from_reports(reports: Sequence[AccuracyReport]) -> Document:
    """Format the models, a table of IoU per class, and mIoU and pixel accuracy of each model."""
    split, first = reports[0].split, reports[0].matrix
    numbers = [f"({n})" if len(reports) > 1 else "" for n in range(1, len(reports) + 1)]
    facts = {"data": f"{split.dataset} {split.split}, {reports[0].num_images} images"}
    for number, report in zip(numbers, reports, strict=True):
        model = report.predictor
        text = f"{model.description}, at {model.size}, sha256 {model.sha256}"
        facts[f"model {number}".rstrip()] = text
    names, pixels = split.label_set.class_names, first.counts.sum(1)
    columns = [pixels / max(1, pixels.sum()), *(report.matrix.iou_per_class for report in reports)]
    rows = [[name, *map(_percent, values)] for name, *values in zip(names, *columns, strict=True)]
    titles = (f"IoU {number}".strip() + ", %" for number in numbers)
    table = TextTable("IoU per class", ("class", "share of pixels, %", *titles), rows)
    lines = [_summary_line(*item, first) for item in zip(numbers, reports, strict=True)]
    return Document(facts, [table], lines)


def _summary_line(number: str, report: AccuracyReport, first: ConfusionMatrix) -> str:
    """Format mIoU and pixel accuracy, and the differences to the first model."""
    matrix, names = report.matrix, report.split.label_set.class_names
    line = f"{number} mIoU {_percent(matrix.miou)} %, ".lstrip()
    line += f"pixel accuracy {_percent(matrix.pixel_accuracy)} %"
    if matrix is first:
        return line
    gains = 100 * (matrix.iou_per_class - first.iou_per_class)
    line += f"; mIoU over (1): {100 * (matrix.miou - first.miou):+.2f}"
    if np.isnan(gains).all():
        return line
    worst = int(np.nanargmin(gains))
    return f"{line}, largest loss of a class: {names[worst]} {gains[worst]:+.2f}"


def require_drawing(path: Path) -> None:
    """Check before any work that ``draw_confusion`` can write ``path``.

    Raises:
        InvalidInput: The path cannot be written, or is neither PNG nor SVG.
        ModuleNotFoundError: matplotlib is not installed.
    """
    require_outputs(path, suffixes=(".png", ".svg"))
    import_module("matplotlib")


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
