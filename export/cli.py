"""``esnet-export``."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.console import is_terminal, new_app, parse_batch, parse_bytes, parse_size, run_app
from runtime.errors import InvalidInput

app = new_app("Turn ESNet weights into a deployable artefact, and look into artefacts.")


class Target(str, enum.Enum):
    """Engines whose best form is known."""

    tensorrt = "tensorrt"
    openvino = "openvino"
    onnxruntime = "onnxruntime"


class Upsample(str, enum.Enum):
    """How upsampling is written."""

    transpose = "transpose"
    subpixel = "subpixel"
    mixed = "mixed"


class Method(str, enum.Enum):
    """How a range is chosen from what occurred."""

    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"
    max = "max"


class SchemeName(str, enum.Enum):
    """How activations are written as 8 bits."""

    tensorrt = "tensorrt"
    cpu = "cpu"


class TensorRtKind(str, enum.Enum):
    """Which TensorRT builds."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Input(str, enum.Enum):
    """What the graph takes."""

    frames = "frames"
    tensor = "tensor"


class Output(str, enum.Enum):
    """What the graph gives."""

    labels = "labels"
    labels_confidence = "labels+confidence"
    logits = "logits"


@app.callback()
def _group() -> None:
    """Keep the subcommand's name even while there are few of them."""


@app.command("to-onnx")
def to_onnx(
    weights: Annotated[str, typer.Argument(help="Checkpoint file, or shipped weights: camvid.")],
    output: Annotated[
        Path | None,
        typer.Option("--output-file", "-o", help="File to write; default: beside the weights."),
    ] = None,
    size: Annotated[str, typer.Option(help="Input HEIGHTxWIDTH, multiples of 8.")] = "512x1024",
    batch: Annotated[str, typer.Option(help="Batch MIN:OPT:MAX, or one fixed number.")] = "1:1:8",
    mean: Annotated[
        str | None,
        typer.Option(help="RGB mean R,G,B on the 0-1 scale; default: the checkpoint's family's."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="RGB deviation R,G,B on the 0-1 scale.")] = None,
    label_set: Annotated[
        str | None, typer.Option(help="cityscapes or camvid; default: by the weights.")
    ] = None,
    input_kind: Annotated[
        Input,
        typer.Option(
            "--input", help="uint8 frames (N,H,W,3), or a normalised float tensor (N,3,H,W)."
        ),
    ] = Input.frames,
    output_kind: Annotated[
        Output,
        typer.Option("--output", help="uint8 labels, with uint8 confidence, or float logits."),
    ] = Output.labels,
    optimize_for: Annotated[
        Target, typer.Option(help="Optimize the graph for this runtime.")
    ] = Target.tensorrt,
    upsample: Annotated[
        Upsample | None,
        typer.Option(
            help="Transposed convolutions, sub-pixel shuffles, or a shuffle in the head alone."
        ),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Half precision, written into the graph.")
    ] = False,
    opset: Annotated[
        int, typer.Option(help="ONNX operator set; TensorRT 8.6 reads up to 17.")
    ] = 17,
    frames: Annotated[
        Path | None, typer.Option(help="Image, folder or video to compare with torch on.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Compare with torch before anything is written.")
    ] = True,
) -> None:
    """Export WEIGHTS to ONNX: BN folded, bytes in, class indices out, checked against torch."""
    size_hw, batch_range = parse_size(size), parse_batch(batch)
    mean_rgb, std_rgb = _parse_rgb(mean, "--mean"), _parse_rgb(std, "--std")
    from export.plan import ExportPlan
    from export.report import text_from_export
    from export.to_onnx import export_onnx

    plan = ExportPlan(
        size_hw=size_hw,
        batch=batch_range,
        input=input_kind.value,
        outputs=tuple(output_kind.value.split("+")),
        optimized_for=optimize_for.value,
        upsample=upsample.value if upsample else None,
        precision="fp16" if fp16 else "fp32",
        opset=opset,
    )
    report = export_onnx(
        weights,
        output,
        plan,
        mean=mean_rgb,
        std=std_rgb,
        label_set=label_set,
        frames=frames,
        verify=verify,
        command=["esnet-export", *sys.argv[1:]],
    )
    typer.echo(text_from_export(report))


@app.command("quantize")
def quantize(
    model: Annotated[Path, typer.Argument(help="An fp32 artefact of to-onnx.")],
    output: Annotated[
        Path | None,
        typer.Option("--output-file", "-o", help="File to write; default: beside the artefact."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Real frames: folder, video, list file; default: the weights' own table."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Range table to use, or to write after measuring.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Calibration frames.")] = 128,
    method: Annotated[
        Method, typer.Option(help="How a range is chosen from what occurred.")
    ] = Method.mse,
    scheme: Annotated[
        SchemeName | None,
        typer.Option(help="tensorrt: symmetric int8; cpu: uint8. Default: by the artefact's form."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Block or convolution that stays float; may be given several times."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder: check mIoU on its val split.")
    ] = None,
    max_miou_drop: Annotated[
        float, typer.Option(min=0, help="Points of mIoU that INT8 may cost on --data.")
    ] = 0.5,
    trt_cache: Annotated[
        Path | None,
        typer.Option(
            "--write-trt-cache", help="Write the ranges as a calibration cache of TensorRT 8.6."
        ),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(help="Measure each block alone, and draw what it costs here (.png, .svg)."),
    ] = None,
) -> None:
    """Quantize MODEL to INT8, and check it on every backend at hand before it is written."""
    from export.quantization.quantize import quantize as run_quantize
    from export.quantization.session import as_rows, open_labelled, progress_of
    from export.report import block

    with progress_of(is_shown=is_terminal()) as on_frame:
        report = run_quantize(
            model,
            output,
            calibration=calibration,
            table_path=table,
            count=count,
            method=method.value,
            scheme_name=scheme.value if scheme else None,
            keep=keep or (),
            labelled=open_labelled(model, data),
            max_miou_drop=max_miou_drop,
            trt_cache_path=trt_cache,
            sensitivity_path=sensitivity,
            command=["esnet-export", *sys.argv[1:]],
            on_frame=on_frame,
        )
    typer.echo(block(as_rows(report)))


@app.command("build-engine")
def build_engine(
    model: Annotated[Path, typer.Argument(help="Artefact of to-onnx or quantize (.onnx).")],
    output: Annotated[
        Path | None,
        typer.Option("--output-file", "-o", help="Engine to write; default: beside the artefact."),
    ] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="Single precision, without TF32.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8, from a quantized artefact.")] = False,
    tensorrt: Annotated[
        TensorRtKind, typer.Option(help="Which TensorRT builds; auto: the first installed.")
    ] = TensorRtKind.auto,
    batch: Annotated[
        str | None, typer.Option(help="Batch MIN:OPT:MAX; default: the artefact's range.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="GPU to build for, 'RTX 3060' or sm_86; several times for several."),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(help="--fp16: measure activations on these; what could overflow stays FP32."),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Scratch memory for kernels, such as 2GiB.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Default: kept per TensorRT and GPU in the user's cache.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Loadable by later TensorRT versions.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on other GPUs from Ampere on.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
) -> None:
    """Build a TensorRT engine from MODEL, and check that it computes in what was asked for."""
    precision = _one_of(fp32=fp32, fp16=fp16, int8=int8)
    batch_range = parse_batch(batch) if batch else None
    workspace_bytes = parse_bytes(workspace) if workspace else None
    from export.engine.build import build_engine as build
    from export.engine.session import text_from_engine, waiter
    from export.engine.trt_builder import BuildOptions
    from runtime.machine.gpus import sm_of

    plan = BuildOptions(
        precision=precision,
        tensorrt=tensorrt.value,
        batch=batch_range,
        workspace_bytes=workspace_bytes,
        sms=tuple(dict.fromkeys(sm_of(text) for text in target or ())),
        timing_cache_path=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        frames=frames,
    )
    report = build(
        model,
        output,
        plan,
        command=["esnet-export", *sys.argv[1:]],
        force=force,
        dry_run=dry_run,
        wait=waiter(show_progress=is_terminal()),
    )
    typer.echo(text_from_engine(report))


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="ONNX file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a file's card, inputs and outputs, operators and types."""
    from runtime.artefact.onnx_file import read_metadata

    read_metadata(file)  # the plain reasons first, before a heavy library is loaded
    from export.inspect import inspect_onnx
    from export.report import json_from_inspection, text_from_inspection

    inspection = inspect_onnx(file)
    typer.echo(json_from_inspection(inspection) if as_json else text_from_inspection(inspection))


def _one_of(**flags: bool) -> str:
    """Get the one flag that is set."""
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) != 1:
        given = " and ".join(f"--{name}" for name in chosen) or "none"
        raise InvalidInput(
            f"give one of {', '.join(f'--{name}' for name in flags)}, got {given}",
            hint="--fp16 is the best choice on every card from Turing on; GTX 10xx: --fp32 or --int8",
        )
    return chosen[0]


def _parse_rgb(text: str | None, option: str) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(
            f"{option} {text!r} is not three numbers",
            hint=f"for example {option} 0.485,0.456,0.406",
        ) from None
    return red, green, blue


def main() -> None:
    """Entry point of ``esnet-export``."""
    run_app(app)
