"""Command lines ``esnet-bench`` and ``esnet-eval``."""

from __future__ import annotations

import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks.arguments import parse_batches, parse_mode, parse_percent
from benchmarks.errors import BenchmarkError, TargetMissed
from benchmarks.scopes import SCOPES
from runtime.console import new_app, parse_size, run_app
from runtime.files import require_outputs


class _DefaultGroup(TyperGroup):
    """Command group that runs ``run`` without a subcommand: ``esnet-bench model.onnx``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *(args or ["--help"])]
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


@app.command(
    help="Time MODELS on frames and compare with a target of 63 FPS. Scopes:\n\n"
    + "\n\n".join(f"{scope}: {text}." for scope, text in SCOPES.items())
)
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
            help="latency: one batch in flight; throughput: several; camera:30: 30 FPS camera."
        ),
    ] = "latency",
    batch: Annotated[
        str | None, typer.Option(help="Batch sizes, such as 1,4,8; default: the model's smallest.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="fp32 model for the label check; default: a file beside the model."),
    ] = None,
    data: Data = None,
    miou: Annotated[bool, typer.Option(help="With --data: measure mIoU.")] = True,
    target_fps: Annotated[
        float, typer.Option(min=0.1, help="Target of the end-to-end rate.")
    ] = 63.0,
    must_meet: Annotated[
        bool, typer.Option("--assert", help="Exit with 1 unless every model meets the target.")
    ] = False,
    max_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Maximum time per model and scope; limits the warm-up too."),
    ] = 20.0,
    json_file: JsonFile = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the results here.")] = None,
    markdown_file: MarkdownFile = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with tables and plots here.")
    ] = None,
) -> None:
    """Time models; arguments are those of ``esnet-bench``."""
    from benchmarks.frames import load_frames
    from benchmarks.models import BenchOptions
    from benchmarks.report import page, tables
    from benchmarks.report.console import document_from_report, result_table
    from benchmarks.timing.latency import TimingConfig
    from benchmarks.timing.suite import bench_models

    kind, camera_fps = parse_mode(mode)
    require_outputs(json_file, csv_file, markdown_file, html_file)
    if html_file is not None:
        page.require_page_libraries()
    options = BenchOptions(
        mode=kind,
        camera_fps=camera_fps,
        batches=parse_batches(batch, kind),
        backends=backend or [None],
        precisions=precision or [None],
        config=TimingConfig(cap_seconds=max_seconds),
        target_fps=target_fps,
        reference=reference,
        data_dir=data if miou else None,
    )
    frame_set = load_frames(frames, None if size == "native" else parse_size(size))
    with tables.progress_bar() as progress:
        task = progress.add_task("", total=1)
        report = bench_models(
            models,
            frame_set,
            options,
            on_part=lambda text, done: progress.update(task, description=text, completed=done),
        )
    tables.publish(
        document_from_report(report),
        report.as_dict(),
        json_file,
        markdown_file,
        (csv_file, lambda path: tables.write_csv(path, result_table(report))),
        (html_file, lambda path: tables.write_text(path, page.page_from_report(report))),
    )
    missed = [result.name for result in report.results if not report.meets_target(result)]
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
    from benchmarks.report.tables import publish
    from benchmarks.roofline.report import analyse_model, document_from_report

    require_outputs(json_file, markdown_file)
    size_hw = parse_size(size) if size else None
    report = analyse_model(model, gpu=gpu, size_hw=size_hw, measure=measure)
    document = document_from_report(report, show_layers=layers)
    publish(document, report.as_dict(), json_file, markdown_file)


@app.command()
def compare(
    weights: Annotated[str, typer.Argument(help="Checkpoint, or shipped weights.")] = "camvid",
    frames: Frames = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH, multiples of 8.")] = "512x1024",
    data: Data = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Frames for INT8 calibration; default: shipped ranges.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=20, help="Interleaved rounds.")] = 20,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Compare WEIGHTS in torch, in a plain ONNX export and in the exported models of this toolkit."""
    from benchmarks.baselines.run import compare_pipelines, document_from_report
    from benchmarks.report.tables import publish

    require_outputs(json_file, markdown_file)
    report = compare_pipelines(
        weights,
        frames=frames,
        size_hw=parse_size(size),
        data_dir=data,
        calibration=calibration,
        rounds=rounds,
    )
    publish(document_from_report(report), report.as_dict(), json_file, markdown_file)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="Report of esnet-bench --json.")],
    after: Annotated[Path, typer.Argument(help="Newer report of the same mode.")],
    max_slower: Annotated[str, typer.Option(help="Allowed slow-down of a result.")] = "5%",
) -> None:
    """Compare two reports; exit with 1 if a result is slower than limit and chance allow."""
    from benchmarks.report.diff import diff_reports, diff_table
    from benchmarks.report.tables import Document, print_document

    limit = parse_percent(max_slower)
    changes, warnings = diff_reports(before, after, limit)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print_document(Document({}, [diff_table(changes)], []))
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
        str | None,
        typer.Option(help="camvid, cityscapes or folder; default: by the model's classes."),
    ] = None,
    label_set: Annotated[
        str | None,
        typer.Option(help="Classes: a name, or a YAML or JSON file; default: the model's."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split: train, val, test, all, or a list file.")
    ] = "val",
    size: Annotated[
        str | None, typer.Option(help="Checkpoints: HEIGHTxWIDTH; default: size of each image.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Exported models: auto (the fastest), or a backend.")
    ] = "auto",
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Exported models: auto (default), fp32 or bf16; repeatable."),
    ] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Run a backend that failed the label check.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the candidates of auto with their times.")
    ] = False,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Number of images, evenly spread over the split.")
    ] = None,
    json_file: JsonFile = None,
    confusion: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix here (.png, .svg).")
    ] = None,
) -> None:
    """Measure mIoU, IoU per class and pixel accuracy of models on a dataset split."""
    from benchmarks.accuracy.evaluate import evaluate as measure_accuracy
    from benchmarks.accuracy.evaluate import open_predictor
    from benchmarks.accuracy.report import document_from_reports, draw_confusion
    from benchmarks.models import precisions_of
    from benchmarks.report.tables import progress_bar, publish
    from esnet.data.datasets import open_split_of_model
    from esnet.labels import load_label_set

    require_outputs(json_file, confusion)
    runs = [
        (name, own) for name in model for own in precisions_of(Path(name), precision or ("auto",))
    ]
    if confusion is not None and len(runs) > 1:
        raise BenchmarkError(
            f"--confusion draws one model, got {len(runs)}", hint="give one --model"
        )
    if confusion is not None and confusion.suffix.lower() not in (".png", ".svg"):
        raise BenchmarkError(
            f"confusion matrix {confusion} is neither .png nor .svg", hint="name a .png file"
        )
    size_hw = parse_size(size) if size else None
    classes = load_label_set(label_set) if label_set else None
    reports, notes = [], dict[str, None]()
    for name, own in runs:
        predictor = open_predictor(
            name, size_hw=size_hw, backend=backend, precision=own, allow_mismatch=allow_mismatch
        )
        with closing(predictor), progress_bar() as progress:
            labelled = open_split_of_model(
                predictor.label_set, data, split, dataset=dataset, label_set=classes
            )
            track = partial(progress.track, description=f"evaluating {name}")
            reports.append(
                measure_accuracy(predictor, labelled, max_images=max_images, track=track)
            )
            notes |= dict.fromkeys(labelled.notes)
            if choice := predictor.choice:
                notes |= dict.fromkeys(choice.notes)
            if choice and explain:
                print(choice.as_text(), file=sys.stderr)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    plain = [report.as_dict() for report in reports]
    publish(
        document_from_reports(reports),
        plain[0] if len(plain) == 1 else {"reports": plain},
        json_file,
        None,
        (confusion, lambda path: draw_confusion(reports[0], path)),
    )


def main() -> None:
    """Run ``esnet-bench``."""
    run_app(app)


def eval_main() -> None:
    """Run ``esnet-eval``."""
    run_app(eval_app)
