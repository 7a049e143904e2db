"""One run of ``esnet-bench`` or ``esnet-eval``: progress, report on screen and in files, target asserted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.accuracy import AccuracyReport, evaluate, open_predictor, open_split_for
from benchmarks.accuracy_report import (
    draw_confusion,
    print_accuracies,
    print_accuracy,
    write_accuracy_json,
)
from benchmarks.bench import BenchReport, bench_models
from benchmarks.errors import BenchmarkError, TargetMissed
from benchmarks.frames import load_frames
from benchmarks.latency import Protocol, Subject
from benchmarks.report import print_report, write_json
from runtime.advice import form_advice, quantization_advice
from runtime.segmenter import Segmenter


def run_bench(
    models: Sequence[Path],
    *,
    frames: Path | None,
    size_hw: tuple[int, int] | None,
    backends: Sequence[str | None],
    precisions: Sequence[str | None],
    max_seconds: float,
    target_fps: float,
    must_meet: bool,
    json_path: Path | None,
    show_progress: bool,
) -> BenchReport:
    """Measure, print, write, assert; arguments are the command's options.

    Raises:
        TargetMissed: With ``must_meet``, a model was too slow.
        BenchmarkError: The report has no folder to go to.
    """
    _check_folders(json_path)
    frame_set = load_frames(frames, size_hw)
    with ExitStack() as stack:
        progress = stack.enter_context(_progress(show_progress))
        task = progress.add_task("opening models", total=None)

        def on_turn(subject: Subject, share: float) -> None:
            progress.update(
                task, description=f"{subject.name}, {subject.scope}", total=1, completed=share
            )

        report = bench_models(
            models,
            frame_set,
            backends=backends,
            precisions=precisions,
            protocol=Protocol(cap_seconds=max_seconds),
            target_fps=target_fps,
            on_turn=on_turn,
            on_open=_warn_of_form,
        )
    print_report(report)
    if json_path is not None:
        write_json(report, json_path)
        print(f"wrote {json_path}")
    missed = [result.name for result in report.results if not report.meets_target(result)]
    if must_meet and missed:
        raise TargetMissed(f"slower than {target_fps:g} FPS: {'; '.join(missed)}")
    return report


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
    wanted = [(model, precision) for model in models for precision in precisions]
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
