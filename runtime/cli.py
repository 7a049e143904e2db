"""Command lines ``esnet-segment`` and ``esnet-doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from runtime.console import command, new_app, parse_height_width, parse_seconds, run_app

segment_app = new_app("Segment images, videos and live cameras with an exported model.")
doctor_app = new_app("Show what is installed, what runs here, and the command that fixes the rest.")


@command(
    segment_app,
    examples=(
        "esnet-segment photos/ --model camvid.onnx -o overlays/",
        "esnet-segment drive.mp4 --model camvid.onnx -o drive_overlay.mp4 --draw colors",
    ),
    groups={
        "Output": "output draw alpha legend",
        "Model": "model backend precision allow_mismatch explain",
        "Source": "recursive reconnect size pixel_format",
    },
)
def segment(
    source: Annotated[
        str,
        typer.Argument(
            help="Image, folder, 'pattern*.jpg', list (.txt), video, camera number, /dev/video0, "
            "rtsp:// or http(s):// URL, or - for raw frames on stdin."
        ),
    ],
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
        str, typer.Option(help="auto (the fastest), openvino, onnxruntime, onnxruntime-cuda, null.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (the fastest with checked labels), fp32 or bf16.")
    ] = "auto",
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Run a backend that failed the label check.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the candidates of auto with their times.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Read a folder's sub-folders, and keep them.")
    ] = False,
    reconnect: Annotated[
        str | None,
        typer.Option(help="Time that a live source may stay away: 30s, 5m, inf; default 30s."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Raw frames on stdin: height x width, such as 480x640.")
    ] = None,
    pixel_format: Annotated[
        str | None,
        typer.Option(help="Raw frames on stdin: rgb24 (default), bgr24, yuv420p, nv12, ..."),
    ] = None,
) -> None:
    """Segment every frame of SOURCE and write images to OUTPUT."""
    from runtime.backend import choose_backend
    from runtime.media.sources import open_source
    from runtime.segment import segment_source

    opened = open_source(
        source,
        recursive=recursive,
        reconnect=None if reconnect is None else parse_seconds(reconnect, "--reconnect"),
        size_hw=None if size is None else parse_height_width(size, "--size"),
        pixel_format=pixel_format,
    )
    choice = choose_backend(model, backend, precision)
    for note in choice.notes:
        typer.echo(f"note: {note}", err=True)
    if explain:
        typer.echo(choice.as_text(), err=True)
    report = segment_source(
        opened,
        model,
        output,
        draw=draw,
        alpha=alpha,
        legend=legend,
        backend=choice.backend,
        precision=choice.precision,
        allow_mismatch=allow_mismatch,
    )
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(report.as_text())
    raise typer.Exit(1 if report.skipped else 0)


@command(
    doctor_app,
    examples=("esnet-doctor", "esnet-doctor --gpu 'GTX 1080 Ti'"),
    groups={"Report": "as_json gpu"},
)
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
