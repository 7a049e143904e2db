"""Command line ``esnet-bench``."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks.arguments import parse_batches, parse_mode, parse_percent, require_reports
from benchmarks.errors import TargetMissed
from benchmarks.scopes import SCOPES
from runtime.console import command, new_app, parse_size, run_app


class _DefaultGroup(TyperGroup):
    """Command group that runs ``run`` without a subcommand: ``esnet-bench model.onnx``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        own = {name for option in self.get_params(ctx) for name in option.opts}
        if first and first not in self.commands and first not in own:
            is_word = not (first.startswith("-") or Path(first).suffix or Path(first).exists())
            if near := get_close_matches(first, self.commands) if is_word else []:
                ctx.fail(f"no such command {first!r}. Did you mean {near[0]!r}?")
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the commands, then the options of ``run``."""
        super().format_help(ctx, formatter)
        run = self.commands["run"]
        run.format_help(run.make_context("[run]", [], ctx, resilient_parsing=True), formatter)


app = new_app("Measure the speed of exported models.", is_group=True, cls=_DefaultGroup)

Frames = Annotated[
    Path | None, typer.Option(help="Image, folder or video; default: generated street scenes.")
]
Data = Annotated[Path | None, typer.Option(help="Dataset: also measure mIoU on its val split.")]
Precisions = Annotated[
    list[str] | None, typer.Option(help="Precision, repeatable; default: the model's precision.")
]
Device = Annotated[str | None, typer.Option(help="GPU in CUDA's order: 0, 1, or cuda:1.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the full report here.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Write the tables here.")]


@command(
    app,
    examples=(
        "esnet-bench camvid.onnx --frames photos/",
        "esnet-bench camvid.onnx camvid-int8.onnx --batch 1,4 --html report.html",
    ),
    groups={
        "Frames": "frames size",
        "Model": "backend precision device",
        "Measurement": "mode batch max_seconds",
        "Accuracy": "reference data miou",
        "Target": "target_fps must_meet",
        "Reports": "json_file csv_file markdown_file html_file",
    },
    help="Time MODELS on frames and compare with a target of 63 FPS; the word run may be omitted. Scopes:\n\n"
    + "\n\n".join(f"{scope}: {text}." for scope, text in SCOPES.items()),
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
    device: Device = None,
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
    require_reports(json_file, markdown_file, csv_file, html_file)
    if html_file is not None:
        page.require_page_libraries()
    options = BenchOptions(
        mode=kind,
        camera_fps=camera_fps,
        batches=parse_batches(batch, kind),
        backends=backend or [None],
        precisions=precision or [None],
        device=device,
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


@command(
    app,
    examples=(
        "esnet-bench roofline --gpu 'GTX 1080 Ti'",
        "esnet-bench roofline camvid.onnx --gpu all --no-measure",
    ),
    groups={"Analysis": "gpu size measure layers", "Reports": "json_file markdown_file"},
)
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

    require_reports(json_file, markdown_file)
    size_hw = parse_size(size) if size else None
    report = analyse_model(model, gpu=gpu, size_hw=size_hw, measure=measure)
    document = document_from_report(report, show_layers=layers)
    publish(document, report.as_dict(), json_file, markdown_file)


@command(
    app,
    examples=(
        "esnet-bench compare camvid --data camvid/",
        "esnet-bench compare best.ckpt --size 360x480 --calibration photos/",
    ),
    groups={
        "Frames": "frames size data",
        "Measurement": "calibration rounds device",
        "Reports": "json_file markdown_file",
    },
)
def compare(
    weights: Annotated[str, typer.Argument(help="Checkpoint, or shipped weights.")] = "camvid",
    frames: Frames = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH, multiples of 8.")] = "512x1024",
    data: Data = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Frames for INT8 calibration; default: shipped ranges.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=20, help="Interleaved rounds.")] = 20,
    device: Device = None,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Compare WEIGHTS in torch, in a plain ONNX export and in the exported models of this toolkit."""
    from benchmarks.baselines.run import compare_pipelines, document_from_report
    from benchmarks.report.tables import publish

    require_reports(json_file, markdown_file)
    report = compare_pipelines(
        weights,
        frames=frames,
        size_hw=parse_size(size),
        data_dir=data,
        calibration=calibration,
        rounds=rounds,
        device=device,
    )
    publish(document_from_report(report), report.as_dict(), json_file, markdown_file)


@command(
    app,
    examples=(
        "esnet-bench diff yesterday.json today.json",
        "esnet-bench diff yesterday.json today.json --max-slower 10%",
    ),
    groups={"Limit": "max_slower"},
)
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


def main() -> None:
    """Run ``esnet-bench``."""
    run_app(app)
