"""Command lines ``esnet-segment`` and ``esnet-doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from runtime.console import new_app, run_app

segment_app = new_app("Segment an image, a folder of images or a video with an exported model.")
doctor_app = new_app("Show what is installed, what runs here, and the command that fixes the rest.")


@segment_app.command()
def segment(
    source: Annotated[Path, typer.Argument(help="Image, folder of images, or video file.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Exported model: .onnx or .engine.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Image file, folder, or .mp4 file to write.")
    ],
    draw: Annotated[
        Literal["overlay", "colors", "labels"],
        typer.Option(help="Overlay on the frame, plain class colours, or class indices."),
    ] = "overlay",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Weight of the class colours.")] = 0.5,
    legend: Annotated[bool, typer.Option(help="Write the class names on the overlay.")] = True,
    backend: Annotated[
        str | None,
        typer.Option(help="openvino, onnxruntime, onnxruntime-cuda or null; default: the fastest."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16; default: the model's precision.")
    ] = None,
) -> None:
    """Segment every frame of SOURCE and write images to OUTPUT."""
    from runtime.segment import segment_source

    report = segment_source(
        source,
        model,
        output,
        draw=draw,
        alpha=alpha,
        legend=legend,
        backend=backend,
        precision=precision,
    )
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(report.as_text())
    raise typer.Exit(1 if report.skipped else 0)


@doctor_app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a bug report.")] = False,
    gpu: Annotated[
        str | None, typer.Option(help="Give advice for this GPU, here or not: 'GTX 1080 Ti'.")
    ] = None,
) -> None:
    """Check this machine and this environment; problems are listed with the command that fixes them."""
    from runtime.machine.doctor import diagnose
    from runtime.machine.doctor_report import print_diagnosis

    diagnosis = diagnose(gpu)
    print_diagnosis(diagnosis, as_json=as_json)
    raise typer.Exit(0 if diagnosis.can_run else 3)


def segment_main() -> None:
    """Run ``esnet-segment``."""
    run_app(segment_app)


def doctor_main() -> None:
    """Run ``esnet-doctor``."""
    run_app(doctor_app)
