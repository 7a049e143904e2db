"""One run of ``esnet-bench``: frames in, progress shown, report printed and written, target asserted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.bench import BenchReport, bench_models
from benchmarks.errors import BenchmarkError, TargetMissed
from benchmarks.frames import load_frames
from benchmarks.latency import Protocol, Subject
from benchmarks.report import print_report, write_json
from runtime.advice import form_advice
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
    if json_path is not None and not json_path.parent.is_dir():
        raise BenchmarkError(
            f"report folder {json_path.parent} does not exist", hint=f"mkdir -p {json_path.parent}"
        )
    frame_set = load_frames(frames, size_hw)
    with ExitStack() as stack:
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            transient=True,
            disable=not show_progress,
        )
        stack.enter_context(progress)
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


def _warn_of_form(segmenter: Segmenter) -> None:
    if advice := form_advice(segmenter.card, segmenter.backend.name):
        print(f"warning: {advice}", file=sys.stderr)
