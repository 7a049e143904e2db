"""``quantize`` as a person sees it: a progress bar, and the dataset found by the artefact's classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from esnet.data.datasets import DATASETS, open_split
from esnet.data.labelled import LabelledSplit
from export.errors import ExportError
from export.graph.qdq import quantized_convolutions
from export.quantization.calibration import RangeTable
from export.quantization.quantize import QuantizeReport
from runtime.artefact.card import ModelCard


@contextmanager
def progress_of(*, is_shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Lend a callback that shows what is done, and how far."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, transient=True, console=console, disable=not is_shown) as progress:
        task = progress.add_task("opening", total=None)

        def on_frame(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, total=total, completed=done)

        yield on_frame


def open_labelled(model_path: Path, data_dir: Path | None) -> LabelledSplit | None:
    """Open the val split of the dataset that the artefact's classes are of.

    Raises:
        ExportError: Its classes are not those of a dataset.
        DatasetError: The split is not there.
    """
    if data_dir is None:
        return None
    label_set = ModelCard.from_file(model_path).label_set
    if label_set not in DATASETS:
        raise ExportError(
            f"the artefact's label set {label_set!r} is not that of a dataset",
            hint="leave --data away: agreement with fp32 is checked then",
        )
    return open_split(label_set, data_dir, "val")


def as_rows(report: QuantizeReport) -> list[tuple[str, str]]:
    """Lay the report out as labelled lines."""
    quantization: dict[str, Any] = dict(report.card.quantization)
    count = len(quantized_convolutions(onnx.load(report.path)))
    rows = [
        (
            "ranges",
            f"{report.table.method}, {report.table.num_frames} frames of {_size(report.table)}",
        ),
        ("scheme", f"{quantization['scheme']}, {count} convolutions in 8 bits"),
    ]
    if quantization["kept"]:
        rows.append(("kept", ", ".join(quantization["kept"])))
    for index, (name, share) in enumerate(report.sensitivity.items()):
        says = "" if index else "  of the labels change if this block alone is in 8 bits"
        rows.append(("" if index else "blocks", f"{name:<20}{100 * share:6.2f} %{says}"))
    if quantization["restored"]:
        rows.append(
            ("restored", f"to float, for the budget: {', '.join(quantization['restored'])}")
        )
    if report.miou_fp32 is not None:
        rows.append(("fp32", f"mIoU {100 * report.miou_fp32:.2f} %"))
    for check in report.checks:
        miou = "" if check.miou is None else f"mIoU {100 * check.miou:.2f} %, "
        word = "" if check.matches_reference else "  STRAYS: not to be used"
        agreement = f"as the reference {check.agreement:.2%}, as fp32 {check.agreement_fp32:.2%}"
        rows.append(("checked", f"{check.backend}: {miou}labels {agreement}{word}"))
    size = report.path.stat().st_size / 1e6
    rows.append(("wrote", f"{report.path}  {size:.2f} MB  sha256 {report.sha256[:12]}"))
    rows += [("note", note) for note in report.notes]
    rows.append(("next", _next(report)))
    return rows


def _next(report: QuantizeReport) -> str:
    if report.card.quantization["scheme"] == "tensorrt":
        return f"esnet-export build-engine {report.path} --int8"
    return f"esnet-bench {report.path}"


def _size(table: RangeTable) -> str:
    return f"{table.size_hw[0]}x{table.size_hw[1]}"
