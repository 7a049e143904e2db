"""Command line ``esnet-eval``."""

from __future__ import annotations

import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.arguments import require_reports
from benchmarks.errors import BenchmarkError
from runtime.console import command, new_app, parse_size, run_app

app = new_app("Measure the accuracy of models on a dataset.")


@command(
    app,
    examples=(
        "esnet-eval -m camvid --data camvid/",
        "esnet-eval -m camvid.onnx -m camvid-int8.onnx --data camvid/ --json eval.json",
    ),
    groups={
        "Dataset": "data dataset label_set split max_images",
        "Model": "model size backend precision device allow_mismatch explain",
        "Reports": "json_file confusion",
    },
)
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
    device: Annotated[
        str | None, typer.Option(help="GPU in CUDA's order: 0, 1, or cuda:1; default: the first.")
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
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the full report here.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix here (.png, .svg).")
    ] = None,
) -> None:
    """Measure mIoU, IoU per class and pixel accuracy of models on a dataset split."""
    from benchmarks.accuracy.evaluate import evaluate as measure_accuracy
    from benchmarks.accuracy.evaluate import open_predictor
    from benchmarks.accuracy.report import document_from_reports, draw_confusion, require_drawing
    from benchmarks.models import precisions_of
    from benchmarks.report.tables import progress_bar, publish
    from esnet.data.datasets import open_split_of_model
    from esnet.labels import load_label_set

    require_reports(json_file)
    runs = [
        (name, own) for name in model for own in precisions_of(Path(name), precision or ("auto",))
    ]
    if confusion is not None and len(runs) > 1:
        raise BenchmarkError(
            f"--confusion draws one model, got {len(runs)}", hint="give one --model"
        )
    if confusion is not None:
        require_drawing(confusion)
    size_hw = parse_size(size) if size else None
    classes = load_label_set(label_set) if label_set else None
    reports, notes = [], dict[str, None]()
    for name, own in runs:
        predictor = open_predictor(
            name,
            size_hw=size_hw,
            backend=backend,
            precision=own,
            device=device,
            allow_mismatch=allow_mismatch,
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
    """Run ``esnet-eval``."""
    run_app(app)
