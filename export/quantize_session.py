"""``quantize`` as a person sees it: a progress bar, and the dataset found by the artefact's classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from esnet.data.datasets import DATASETS, open_split
from esnet.data.labelled import LabelledSplit
from export.errors import ExportError
from runtime.card import ModelCard


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
