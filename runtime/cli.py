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
        "Output": "output show jsonl overwrite resume target_fps",
        "Drawing": "draw alpha legend classes label_ids",
        "Model": "model resize backend precision device allow_mismatch explain",
        "Source": "recursive reconnect size pixel_format every start duration max_frames shard",
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
        Path | None,
        typer.Option("--output", "-o", help="Image file, folder, or .mp4 file to write."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the frames in a window; q or Esc ends.")
    ] = False,
    jsonl: Annotated[
        Path | None,
        typer.Option(help="Write one JSON record for each frame; - is stdout."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace files that esnet-segment did not write, too."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out frames whose image is in the output folder.")
    ] = False,
    target_fps: Annotated[
        float | None,
        typer.Option(min=0.001, help="Count the results that come too late for this rate."),
    ] = None,
    draw: Annotated[
        Literal["overlay", "colors", "labels", "confidence"],
        typer.Option(help="Overlay, plain class colours, class indices, or confidence x 255."),
    ] = "overlay",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Weight of the class colours.")] = 0.5,
    legend: Annotated[bool, typer.Option(help="Write the class names on the overlay.")] = True,
    classes: Annotated[
        str | None, typer.Option(help="Colour these classes only: road,car.")
    ] = None,
    label_ids: Annotated[
        bool,
        typer.Option(
            "--label-ids", help="With --draw labels: values of the dataset's masks, not indices."
        ),
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="Use one frame of this many.")] = 1,
    start: Annotated[
        str | None, typer.Option(help="Position in a video to start at: 90s, 1.5m.")
    ] = None,
    duration: Annotated[
        str | None, typer.Option(help="Time from the first frame to the last: 90s, 1.5m.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Frames at most.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="Part of the frames for one of several processes: 1/4.")
    ] = None,
    resize: Annotated[
        Literal["stretch", "letterbox"],
        typer.Option(help="Fit frames of another shape to the model: stretch, or with black bars."),
    ] = "stretch",
    backend: Annotated[
        str, typer.Option(help="auto (the fastest), openvino, onnxruntime, onnxruntime-cuda, null.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (the fastest with checked labels), fp32 or bf16.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="GPU to run on: 1, or cuda:1; default the first.")
    ] = None,
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
    from runtime.media.selection import Selection, shard_from_text
    from runtime.media.sources import open_source
    from runtime.output.drawing import Drawing
    from runtime.output.outputs import Outputs
    from runtime.segment import segment_source

    opened = open_source(
        source,
        recursive=recursive,
        reconnect=None if reconnect is None else parse_seconds(reconnect, "--reconnect"),
        size_hw=None if size is None else parse_height_width(size, "--size"),
        pixel_format=pixel_format,
        start=None if start is None else parse_seconds(start, "--start"),
    )
    selection = Selection(
        every=every,
        duration=parse_seconds(duration or "inf", "--duration"),
        max_frames=max_frames,
        shard=shard_from_text(shard or "1/1"),
    )
    drawing = Drawing(
        kind=draw,
        alpha=alpha,
        legend=legend,
        classes=tuple(name.strip() for name in classes.split(",")) if classes else (),
        label_ids=label_ids,
    )
    outputs = Outputs(
        path=output,
        records_path=jsonl,
        show=show,
        drawing=drawing,
        overwrite=overwrite,
        resume=resume,
    )
    choice = choose_backend(model, backend, precision, device)
    for note in choice.notes:
        typer.echo(f"note: {note}", err=True)
    if explain:
        typer.echo(choice.as_text(), err=True)
    report = segment_source(
        opened,
        model,
        outputs,
        selection=selection,
        resize=resize,
        target_fps=target_fps,
        backend=choice.backend,
        precision=choice.precision,
        device=device,
        allow_mismatch=allow_mismatch,
    )
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(report.as_text(), err=str(jsonl) == "-")
    if report.lost is not None:
        raise report.lost
    raise typer.Exit(report.exit_code)


@command(
    doctor_app,
    examples=("esnet-doctor", "esnet-doctor --gpu 'GTX 1080 Ti'"),
    groups={"Report": "as_json gpu device"},
)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a bug report.")] = False,
    gpu: Annotated[
        str | None, typer.Option(help="Give advice for this GPU, here or not: 'GTX 1080 Ti'.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Check for this GPU of the machine: 1, or cuda:1.")
    ] = None,
) -> None:
    """Check this machine and this environment; problems are listed with the command that fixes them."""
    from runtime.machine.doctor import diagnose
    from runtime.machine.doctor_report import print_diagnosis

    diagnosis = diagnose(gpu, device=device)
    print_diagnosis(diagnosis, as_json=as_json)
    raise typer.Exit(0 if diagnosis.can_run else 3)


def segment_main() -> None:
    """Run ``esnet-segment``."""
    run_app(segment_app)


def doctor_main() -> None:
    """Run ``esnet-doctor``."""
    run_app(doctor_app)
