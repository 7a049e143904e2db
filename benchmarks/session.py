"""One run of ``esnet-bench`` or ``esnet-eval``: progress, report on screen and in files, target asserted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.accuracy.evaluate import (
    ARTEFACT_SUFFIXES,
    AccuracyReport,
    OpenPredictor,
    evaluate,
    open_predictor,
    open_split_for,
)
from benchmarks.accuracy.report import (
    draw_confusion,
    print_accuracies,
    print_accuracy,
    write_accuracy_json,
)
from benchmarks.errors import BenchmarkError, TargetMissed
from benchmarks.frames import load_frames
from benchmarks.models import OpenModel, precisions_of
from benchmarks.report.console import print_report, result_table, write_json, write_markdown
from benchmarks.report.diff import diff_reports, diff_table
from benchmarks.report.page import require_page_libraries, write_page
from benchmarks.report.tables import rich_table, wide_console, write_csv
from benchmarks.timing.suite import BenchOptions, BenchReport, bench_models
from runtime.artefact.advice import form_advice, quantization_advice
from runtime.segmenter import Segmenter


def run_bench(
    models: Sequence[Path],
    *,
    frames: Path | None,
    size_hw: tuple[int, int] | None,
    options: BenchOptions,
    data_dir: Path | None,
    must_meet: bool,
    outputs: Outputs,
    show_progress: bool,
) -> BenchReport:
    """Measure, print, write, assert; arguments are the command's options.

    Raises:
        TargetMissed: With ``must_meet``, a model was too slow.
        BenchmarkError: A report has no folder to go to, or its library is not installed.
    """
    outputs.check()
    frame_set = load_frames(frames, size_hw)
    if data_dir is not None:
        options = replace(options, measure_miou=partial(_miou, data_dir=data_dir))
    with _progress(show_progress) as progress:
        task = progress.add_task("opening models", total=None)

        def on_part(text: str, share: float) -> None:
            progress.update(task, description=text, total=1, completed=share)

        report = bench_models(models, frame_set, options, on_part=on_part, on_open=_warn_of_form)
    print_report(report)
    for path in outputs.write(report):
        print(f"wrote {path}")
    missed = [result.name for result in report.results if not report.meets_target(result)]
    if must_meet and missed:
        raise TargetMissed(f"slower than {options.target_fps:g} FPS: {'; '.join(missed)}")
    return report


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Files to write a bench report to; ``None`` leaves one out."""

    json_path: Path | None = None
    csv_path: Path | None = None
    markdown_path: Path | None = None
    html_path: Path | None = None

    def check(self) -> None:
        """Refuse, before anything is measured, a file without a folder, or a page that cannot be made.

        Raises:
            BenchmarkError: With what to do.
        """
        _check_folders(self.json_path, self.csv_path, self.markdown_path, self.html_path)
        if self.html_path is not None:
            require_page_libraries()

    def write(self, report: BenchReport) -> Iterator[Path]:
        """Write the files and name them."""
        writers: dict[Path | None, Callable[[BenchReport, Path], None]] = {
            self.json_path: write_json,
            self.csv_path: lambda report, path: write_csv(path, result_table(report)),
            self.markdown_path: write_markdown,
            self.html_path: write_page,
        }
        for path, write in writers.items():
            if path is not None:
                write(report, path)
                yield path


def run_comparison(
    weights: str,
    *,
    frames: Path | None,
    size_hw: tuple[int, int],
    data_dir: Path | None,
    calibration: Path | None,
    rounds: int,
    json_path: Path | None,
    markdown_path: Path | None,
    show_progress: bool,
) -> None:
    """Compare, print, write; arguments are the command's options.

    Raises:
        BenchmarkError: Frames or rounds that do not do, or a report without a folder to go to.
        EsnetError: The weights cannot be loaded, or the dataset is not there.
        ExportError: The weights cannot be exported.
    """
    from benchmarks.baselines import run as compare
    from esnet.checkpoint import load_checkpoint
    from esnet.data.datasets import open_split
    from esnet.labels import label_set_for

    _check_folders(json_path, markdown_path)
    frame_set = load_frames(frames, size_hw)
    labelled = None
    if data_dir is not None:
        checkpoint = load_checkpoint(weights)
        label_set = label_set_for(
            checkpoint.network.config.num_classes, name=checkpoint.metadata.get("label_set")
        )
        labelled = open_split(label_set.name, data_dir, "val")
    with _progress(show_progress) as progress:
        task = progress.add_task("loading", total=None)
        report = compare.compare_weights(
            weights,
            frame_set,
            rounds=rounds,
            calibration=calibration,
            labelled=labelled,
            on_part=lambda text: progress.update(task, description=text),
        )
    compare.print_comparison(report)
    for path, write in (
        (json_path, compare.write_comparison_json),
        (markdown_path, compare.write_comparison_markdown),
    ):
        if path is not None:
            write(report, path)
            print(f"wrote {path}")


def run_diff(before: Path, after: Path, *, max_slower: float) -> None:
    """Compare two reports and print what changed.

    Raises:
        TargetMissed: Something is slower beyond limit and chance.
        BenchmarkError: They cannot be compared.
    """
    difference = diff_reports(before, after, max_slower)
    console = wide_console()
    for warning in difference.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    console.print(rich_table(diff_table(difference)))
    slower = [change for change in difference.changes if change.is_slow_down]
    if slower:
        worst = max(slower, key=lambda change: change.slower)
        raise TargetMissed(
            f"{len(slower)} of {len(difference.changes)} figures are slower by more than "
            f"{100 * max_slower:g} %; the worst: {worst.name}, {100 * worst.slower:+.1f} %"
        )


def _miou(model: OpenModel, *, data_dir: Path) -> float:
    """Measure mIoU on the val split of the dataset that the model's classes are of."""
    predictor = OpenPredictor(model.segmenter, model.path)
    return evaluate(predictor, open_split_for(predictor, data_dir, None, "val")).miou


def run_evaluation(
    models: Sequence[str],
    data_dir: Path,
    *,
    dataset: str | None,
    split: str,
    size_hw: tuple[int, int] | None,
    backend: str | None,
    precisions: Sequence[str | None],
    max_images: int | None,
    json_path: Path | None,
    confusion_path: Path | None,
    show_progress: bool,
) -> list[AccuracyReport]:
    """Evaluate each model at each precision, print, write; arguments are the command's options.

    Raises:
        BenchmarkError: Options that do not go together, or a report without a folder to go to.
        DatasetError: The split is not there, or a picture cannot be read.
    """
    _check_folders(json_path, confusion_path)
    wanted = [(model, p) for model in models for p in _precisions(model, precisions)]
    if confusion_path is not None and len(wanted) > 1:
        raise BenchmarkError(
            f"--confusion draws one model, got {len(wanted)}", hint="give one --model"
        )
    reports: list[AccuracyReport] = []
    notes: set[str] = set()
    for model, precision in wanted:
        with ExitStack() as stack:
            predictor = open_predictor(model, size_hw=size_hw, backend=backend, precision=precision)
            stack.callback(predictor.close)
            labelled = open_split_for(predictor, data_dir, dataset, split)
            for note in set(labelled.notes) - notes:
                print(f"note: {note}", file=sys.stderr)
            notes |= set(labelled.notes)
            on_image = stack.enter_context(_counted(f"evaluating {model}", show_progress))
            report = evaluate(predictor, labelled, max_images=max_images, on_image=on_image)
            reports.append(report)
    if len(reports) == 1:
        print_accuracy(reports[0])
    else:
        print_accuracies(reports)
    if json_path is not None:
        write_accuracy_json(reports, json_path)
        print(f"wrote {json_path}")
    if confusion_path is not None:
        draw_confusion(reports[0], confusion_path)
        print(f"wrote {confusion_path}")
    return reports


@contextmanager
def _counted(what: str, is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while pictures are counted."""
    with _progress(is_shown) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, total=total, completed=done)


def _precisions(model: str, precisions: Sequence[str | None]) -> Sequence[str | None]:
    is_artefact = Path(model).suffix.lower() in ARTEFACT_SUFFIXES and Path(model).is_file()
    return precisions_of(Path(model), precisions) if is_artefact else precisions


def _progress(is_shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        transient=True,
        disable=not is_shown,
    )


def _check_folders(*paths: Path | None) -> None:
    """Refuse a report that has no folder to go to, before anything is measured."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise BenchmarkError(
                f"report folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}"
            )


def _warn_of_form(segmenter: Segmenter) -> None:
    for advise in (form_advice, quantization_advice):
        if advice := advise(segmenter.card, segmenter.backend.name):
            print(f"warning: {advice}", file=sys.stderr)
