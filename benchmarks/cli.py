"""``esnet-bench``, a group of measurements whose default is the latency bench, and ``esnet-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks.errors import BenchmarkError
from runtime.console import is_terminal, new_app, parse_size, run_app

_DEFAULT_COMMAND = "run"


class _DefaultGroup(TyperGroup):
    """Runs ``run`` when the first word is not a subcommand, so that ``esnet-bench model.onnx`` works."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [_DEFAULT_COMMAND, *(args or ["--help"])]
        return super().parse_args(ctx, args)


app = new_app("Measure exported models.", cls=_DefaultGroup)
eval_app = new_app("Measure accuracy on a dataset.")


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
    mode: Annotated[
        str,
        typer.Option(
            help="latency: one frame in flight; throughput: pipelined; camera:30: paced arrivals."
        ),
    ] = "latency",
    preset: Annotated[
        str | None,
        typer.Option(help="On a GPU: also tell latency as trtexec10 or trtexec11 defines it."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="fp32 model whose labels the others are held against; default: beside."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder: measure mIoU on its val split, too.")
    ] = None,
    miou: Annotated[bool, typer.Option(help="With --data: whether to measure mIoU.")] = True,
    target_fps: Annotated[
        float, typer.Option(help="Rate to hold the end-to-end figure against.")
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
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write tables and verdict here.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with pictures here.")
    ] = None,
) -> None:
    """Time MODELS on frames: p50 to p99, engine and end to end, against 63 FPS."""
    from benchmarks.session import Outputs, run_bench
    from benchmarks.timing.latency import TimingConfig
    from benchmarks.timing.suite import BenchOptions

    kind, camera_fps = _parse_mode(mode)
    options = BenchOptions(
        mode=kind,
        camera_fps=camera_fps,
        backends=backend or [None],
        precisions=precision or [None],
        protocol=TimingConfig(cap_seconds=max_seconds),
        target_fps=target_fps,
        reference=reference,
        preset=preset,
    )

    run_bench(
        models,
        frames=frames,
        size_hw=None if size == "native" else parse_size(size),
        options=options,
        data_dir=data if miou else None,
        must_meet=must_meet,
        outputs=Outputs(
            json_path=json_file,
            csv_path=csv_file,
            markdown_path=markdown_file,
            html_path=html_file,
        ),
        show_progress=is_terminal(),
    )


@app.command()
def roofline(
    model: Annotated[
        Path | None,
        typer.Argument(help="Exported ONNX model; default: the shipped weights, exported for it."),
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU by name, or 'all' of the table.")] = "GTX 1080 Ti",
    size: Annotated[
        str | None, typer.Option(help="Shipped weights: HEIGHTxWIDTH; default 512x1024.")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Measure this machine's peaks and the model on it, too.")
    ] = True,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show every layer, not every block.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report here.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write what is printed here.")
    ] = None,
) -> None:
    """Tell the least time MODEL can take on a GPU, and on this machine beside what it does take."""
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
    frames: Annotated[
        Path | None, typer.Option(help="Image, folder or video; default: generated street scenes.")
    ] = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH, multiples of 8.")] = "512x1024",
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder: measure mIoU on its val split, too.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Frames for INT8 ranges; default: those shipped with the weights."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds, at least 20.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report here.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write table and environment here.")
    ] = None,
) -> None:
    """Time WEIGHTS by every route at hand: torch, the plain export, and ours, in one run."""
    from benchmarks.session import run_comparison

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
    after: Annotated[Path, typer.Argument(help="A later one of the same mode.")],
    max_slower: Annotated[
        str, typer.Option(help="How much slower a figure may be: 5%. More exits with 1.")
    ] = "5%",
) -> None:
    """Compare two reports; a slow-down beyond the limit, intervals apart, exits with 1."""
    from benchmarks.session import run_diff

    run_diff(before, after, max_slower=_parse_percent(max_slower))


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


def _parse_mode(text: str) -> tuple[str, float]:
    """Read ``latency``, ``throughput`` or ``camera:FPS``."""
    kind, _, pace = text.partition(":")
    if (text in ("latency", "throughput")) or (kind == "camera" and not pace):
        return kind, 30.0
    try:
        if kind == "camera":
            return kind, float(pace)
    except ValueError:
        pass  # said below, with the other ways to be wrong
    raise BenchmarkError(
        f"unknown mode {text!r}", hint="latency, throughput, or camera:30 for a camera of 30 FPS"
    )


def _parse_percent(text: str) -> float:
    """Read ``5%`` or ``5`` as 0.05."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 10:
        raise BenchmarkError(f"{text!r} is not a percentage", hint="for example --max-slower 5%")
    return share


def main() -> None:
    """Entry point of ``esnet-bench``."""
    run_app(app)


def eval_main() -> None:
    """Entry point of ``esnet-eval``."""
    run_app(eval_app)
