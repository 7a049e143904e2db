"""Command lines ``esnet-bench`` and ``esnet-eval``."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks.errors import BenchmarkError, TargetMissed
from runtime.console import is_terminal, new_app, parse_size, run_app

if TYPE_CHECKING:
    from runtime.segmenter import Segmenter

_DEFAULT_COMMAND = "run"


class _DefaultGroup(TyperGroup):
    """Command group that runs ``run`` without a subcommand: ``esnet-bench model.onnx``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [_DEFAULT_COMMAND, *(args or ["--help"])]
        return super().parse_args(ctx, args)


app = new_app("Measure the speed of exported models.", cls=_DefaultGroup)
eval_app = new_app("Measure the accuracy of models on a dataset.")

Frames = Annotated[
    Path | None, typer.Option(help="Image, folder or video; default: generated street scenes.")
]
Data = Annotated[Path | None, typer.Option(help="Dataset: also measure mIoU on its val split.")]
Precisions = Annotated[
    list[str] | None, typer.Option(help="Precision, repeatable; default: the model's precision.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the full report here.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Write the tables here.")]


@app.command(_DEFAULT_COMMAND)
def run(
    models: Annotated[
        list[Path], typer.Argument(help="Exported models; the first is the baseline.")
    ],
    frames: Frames = None,
    size: Annotated[str, typer.Option(help="Frame size, HEIGHTxWIDTH or 'native'.")] = "512x1024",
    backend: Annotated[
        list[str] | None, typer.Option(help="Backend, repeatable; default: the fastest installed.")
    ] = None,
    precision: Precisions = None,
    mode: Annotated[
        str,
        typer.Option(
            help="latency: one frame in flight; throughput: several; camera:30: 30 FPS camera."
        ),
    ] = "latency",
    reference: Annotated[
        Path | None,
        typer.Option(help="fp32 model for the label check; default: a file beside the model."),
    ] = None,
    data: Data = None,
    miou: Annotated[bool, typer.Option(help="With --data: measure mIoU.")] = True,
    target_fps: Annotated[float, typer.Option(help="Target of the end-to-end rate.")] = 63.0,
    must_meet: Annotated[
        bool, typer.Option("--assert", help="Exit with 1 unless every model meets the target.")
    ] = False,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, help="Maximum time per model and scope, without warm-up.")
    ] = 20.0,
    json_file: JsonFile = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the results here.")] = None,
    markdown_file: MarkdownFile = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with tables and plots here.")
    ] = None,
) -> None:
    """Time MODELS on frames, engine and end to end, and compare with a target of 63 FPS."""
    from benchmarks.frames import load_frames
    from benchmarks.models import BenchOptions
    from benchmarks.report import console, page, tables
    from benchmarks.timing.latency import TimingConfig
    from benchmarks.timing.suite import bench_models

    kind, camera_fps = _parse_mode(mode)
    tables.check_folders(json_file, csv_file, markdown_file, html_file)
    if html_file is not None:
        page.require_page_libraries()
    options = BenchOptions(
        mode=kind,
        camera_fps=camera_fps,
        backends=backend or [None],
        precisions=precision or [None],
        config=TimingConfig(cap_seconds=max_seconds),
        target_fps=target_fps,
        reference=reference,
        measure_miou=partial(_miou, data_dir=data) if data and miou else None,
    )
    frame_set = load_frames(frames, None if size == "native" else parse_size(size))
    with tables.progress_bar(is_terminal()) as progress:
        task = progress.add_task("", total=1)
        report = bench_models(
            models,
            frame_set,
            options,
            on_part=lambda text, done: progress.update(task, description=text, completed=done),
            on_open=_print_advice,
        )
    document = console.document_from_report(report)
    tables.print_document(document)
    tables.write_outputs(
        (json_file, lambda path: tables.write_json(path, report.as_dict())),
        (csv_file, lambda path: tables.write_csv(path, console.result_table(report))),
        (
            markdown_file,
            lambda path: tables.write_text(path, tables.markdown_from_document(document)),
        ),
        (html_file, lambda path: tables.write_text(path, page.page_from_report(report))),
    )
    missed = [result.model.name for result in report.results if not report.meets_target(result)]
    if must_meet and missed:
        raise TargetMissed(f"slower than {target_fps:g} FPS: {'; '.join(missed)}")


@app.command()
def roofline(
    model: Annotated[
        Path | None, typer.Argument(help="Exported ONNX model; default: the shipped weights.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU name, or 'all'.")] = "GTX 1080 Ti",
    size: Annotated[
        str | None, typer.Option(help="Shipped weights: HEIGHTxWIDTH; default 512x1024.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Also measure this machine and the model.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Show layers, not blocks.")] = False,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Compute a lower bound of MODEL's time on a GPU, and on this machine with the measured time."""
    from benchmarks.roofline.report import run_roofline

    run_roofline(
        model,
        gpu=gpu,
        size_hw=parse_size(size) if size else None,
        measure=measure,
        show_layers=layers,
        json_path=json_file,
        markdown_path=markdown_file,
    )


@app.command()
def compare(
    weights: Annotated[str, typer.Argument(help="Checkpoint, or shipped weights.")] = "camvid",
    frames: Frames = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH, multiples of 8.")] = "512x1024",
    data: Data = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Frames for INT8 calibration; default: shipped ranges.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds, at least 20.")] = 20,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Compare WEIGHTS in torch, in a plain ONNX export and in the exported models of this toolkit."""
    from benchmarks.baselines.run import run_comparison

    run_comparison(
        weights,
        frames=frames,
        size_hw=parse_size(size),
        data_dir=data,
        calibration=calibration,
        rounds=rounds,
        json_path=json_file,
        markdown_path=markdown_file,
        show_progress=is_terminal(),
    )


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="Report of esnet-bench --json.")],
    after: Annotated[Path, typer.Argument(help="Newer report of the same mode.")],
    max_slower: Annotated[str, typer.Option(help="Allowed slow-down of a result.")] = "5%",
) -> None:
    """Compare two reports; exit with 1 if a result is slower than limit and chance allow."""
    from benchmarks.report.diff import diff_reports, diff_table
    from benchmarks.report.tables import rich_table, wide_console

    limit = _parse_percent(max_slower)
    changes, warnings = diff_reports(before, after, limit)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    wide_console().print(rich_table(diff_table(changes)))
    slower = [change for change in changes if change.verdict == "SLOWER"]
    if slower:
        worst = max(slower, key=lambda change: change.slower)
        raise TargetMissed(
            f"{len(slower)} of {len(changes)} results are slower by more than {100 * limit:g} %; "
            f"the worst: {worst.name}, {100 * worst.slower:+.1f} %"
        )


@eval_app.command()
def evaluate(
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="Checkpoint or exported model, repeatable."),
    ],
    data: Annotated[Path, typer.Option(help="Dataset folder.")],
    dataset: Annotated[
        str | None, typer.Option(help="camvid or cityscapes; default: that of the model.")
    ] = None,
    split: Annotated[str, typer.Option(help="Dataset split: train, val, test.")] = "val",
    size: Annotated[
        str | None, typer.Option(help="Checkpoints: HEIGHTxWIDTH; default: size of each image.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Exported models: backend; default: the fastest installed.")
    ] = None,
    precision: Precisions = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Number of images, evenly spread over the split.")
    ] = None,
    json_file: JsonFile = None,
    confusion: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix here (.png, .svg).")
    ] = None,
) -> None:
    """Measure mIoU, IoU per class and pixel accuracy of models on a dataset split."""
    from benchmarks.accuracy import evaluate as accuracy
    from benchmarks.accuracy.report import document_from_reports, draw_confusion
    from benchmarks.report.tables import (
        check_folders,
        print_document,
        progress_bar,
        write_json,
        write_outputs,
    )

    check_folders(json_file, confusion)
    runs = accuracy.expand_precisions(model, precision or [None])
    if confusion is not None and len(runs) > 1:
        raise BenchmarkError(
            f"--confusion draws one model, got {len(runs)}", hint="give one --model"
        )
    size_hw = parse_size(size) if size else None
    reports, notes = [], set[str]()
    for name, run_precision in runs:
        predictor = accuracy.open_predictor(
            name, size_hw=size_hw, backend=backend, precision=run_precision
        )
        with closing(predictor), progress_bar(is_terminal()) as progress:
            labelled = accuracy.open_split_for(predictor, data, dataset, split)
            for note in set(labelled.notes) - notes:
                print(f"note: {note}", file=sys.stderr)
            notes |= set(labelled.notes)
            track = partial(progress.track, description=f"evaluating {name}")
            report = accuracy.evaluate(predictor, labelled, max_images=max_images, track=track)
            reports.append(report)
    print_document(document_from_reports(reports))
    plain = [report.as_dict() for report in reports]
    content = plain[0] if len(plain) == 1 else {"reports": plain}
    write_outputs(
        (json_file, lambda path: write_json(path, content)),
        (confusion, lambda path: draw_confusion(reports[0], path)),
    )


def _miou(segmenter: Segmenter, path: Path, *, data_dir: Path) -> float:
    """Measure mIoU on the val split of the dataset of the model's label set."""
    from benchmarks.accuracy.evaluate import evaluate, open_split_for, predictor_from_segmenter

    predictor = predictor_from_segmenter(segmenter, path)
    return evaluate(predictor, open_split_for(predictor, data_dir, None, "val")).matrix.miou


def _print_advice(segmenter: Segmenter) -> None:
    from runtime.artefact.advice import form_advice, quantization_advice

    for advise in (form_advice, quantization_advice):
        if advice := advise(segmenter.card, segmenter.backend.name):
            print(f"warning: {advice}", file=sys.stderr)


def _parse_mode(text: str) -> tuple[str, float]:
    """Parse ``latency``, ``throughput``, ``camera`` or ``camera:FPS``."""
    match = re.fullmatch(r"(latency|throughput|camera)|(camera):(\d+(?:\.\d+)?)", text)
    if match is None:
        raise BenchmarkError(
            f"unknown mode {text!r}", hint="latency, throughput, or camera:30 for a 30 FPS camera"
        )
    return match[1] or match[2], float(match[3] or 30)


def _parse_percent(text: str) -> float:
    """Parse ``5%`` or ``5`` as 0.05."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%?", text)
    if match is None:
        raise BenchmarkError(f"{text!r} is not a percentage", hint="for example --max-slower 5%")
    return float(match[1]) / 100


def main() -> None:
    """Run ``esnet-bench``."""
    run_app(app)


def eval_main() -> None:
    """Run ``esnet-eval``."""
    run_app(eval_app)
