"""``esnet-bench``, a group of measurements whose default is the latency bench, and ``esnet-eval``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks.errors import BenchmarkError
from runtime.console import is_terminal, new_app, parse_size, run_app
from runtime.errors import RunError

_DEFAULT_COMMAND = "run"


class _DefaultGroup(TyperGroup):
    """Runs ``run`` when the first word is not a subcommand, so that ``esnet-bench model.onnx`` works."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [_DEFAULT_COMMAND, *(args or ["--help"])]
        return super().parse_args(ctx, args)


app = new_app("Measure exported models.", cls=_DefaultGroup)
eval_app = new_app("Measure accuracy on a dataset.")


class Mode(str, enum.Enum):
    """How requests follow one another."""

    latency = "latency"


@app.callback()
def _group() -> None:
    """Keep the group a group while it has one command."""


@app.command(_DEFAULT_COMMAND)
def run(
    models: Annotated[
        list[Path], typer.Argument(help="Exported models; the first is the reference.")
    ],
    frames: Annotated[
        Path | None, typer.Option(help="Image, folder or video; default: generated street scenes.")
    ] = None,
    size: Annotated[
        str,
        typer.Option(help="Size of the decoded frames, HEIGHTxWIDTH, or 'native' for their own."),
    ] = "512x1024",
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Backend; may be given several times. Default: the fastest here."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Arithmetic; may be given several times. Default: the model's."),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="latency: one frame in flight.")] = Mode.latency,
    target_fps: Annotated[
        float, typer.Option(help="Rate to hold the end-to-end median against.")
    ] = 63.0,
    must_meet: Annotated[
        bool, typer.Option("--assert", help="Exit with 1 unless every model meets the target.")
    ] = False,
    max_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Longest measurement of a model and scope, warm-up apart."),
    ] = 20.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report here.")
    ] = None,
) -> None:
    """Time MODELS on frames: p50 to p99, engine and end to end, against 63 FPS."""
    from benchmarks.session import run_bench

    run_bench(
        models,
        frames=frames,
        size_hw=None if size == "native" else parse_size(size),
        backends=backend or [None],
        precisions=precision or [None],
        max_seconds=max_seconds,
        target_fps=target_fps,
        must_meet=must_meet,
        json_path=json_file,
        show_progress=is_terminal(),
    )


@eval_app.command()
def evaluate(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint, exported model, or name of shipped weights; several stand side by side.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="The dataset's folder.")],
    dataset: Annotated[
        str | None, typer.Option(help="camvid or cityscapes; default: by the model's classes.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test ...")] = "val",
    size: Annotated[
        str | None,
        typer.Option(help="Checkpoints: HEIGHTxWIDTH to work at; default: the pictures' own."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Exported models: backend; default: the fastest here.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Exported models: arithmetic; may be given several times."),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Evaluate so many, spread over the split.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    confusion: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix here (.png, .svg).")
    ] = None,
) -> None:
    """Measure mIoU, IoU by class and pixel accuracy of MODEL on a dataset's split."""
    from benchmarks.session import run_evaluation

    run_evaluation(
        model,
        data,
        dataset=dataset,
        split=split,
        size_hw=parse_size(size) if size else None,
        backend=backend,
        precisions=precision or [None],
        max_images=max_images,
        json_path=json_file,
        confusion_path=confusion,
        show_progress=is_terminal(),
    )


def main() -> None:
    """Entry point of ``esnet-bench``."""
    run_app(app, BenchmarkError, RunError)


def eval_main() -> None:
    """Entry point of ``esnet-eval``."""
    from esnet.errors import EsnetError

    run_app(eval_app, BenchmarkError, RunError, EsnetError)
