"""``esnet-export``: the commands to-onnx and inspect, and those of the sub-packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from export.engine.cli import app as engine_app
from export.quantization.cli import app as quantization_app
from runtime.console import command, new_app, parse_batch, parse_size, run_app
from runtime.errors import InvalidInput

app = new_app(
    "Export ESNet weights to ONNX, quantize them, build engines, and inspect artefacts.",
    is_group=True,
)

Runtime = Literal["tensorrt", "openvino", "onnxruntime"]
Upsample = Literal["transpose", "subpixel", "mixed"]
Outputs = Literal["labels", "labels+confidence", "logits"]


@command(
    app,
    "to-onnx",
    examples=(
        "esnet-export to-onnx camvid -o camvid.onnx --optimize-for openvino",
        "esnet-export to-onnx best.ckpt --size 360x480 --batch 1 --fp16 --frames photos/",
    ),
    groups={
        "Weights": "mean std label_set",
        "Graph": "size batch input_kind output_kind optimize_for upsample fp16 opset",
        "Check": "frames verify",
        "Output": "output",
    },
)
def to_onnx(
    weights: Annotated[str, typer.Argument(help="Checkpoint file, or shipped weights: camvid.")],
    output: Annotated[
        Path | None,
        typer.Option("--output-file", "-o", help="Output file; default: by input name."),
    ] = None,
    size: Annotated[str, typer.Option(help="Input HEIGHTxWIDTH, multiples of 8.")] = "512x1024",
    batch: Annotated[str, typer.Option(help="Batch MIN:OPT:MAX, or one fixed number.")] = "1:1:8",
    mean: Annotated[
        str | None, typer.Option(help="RGB mean R,G,B, 0-1 scale; default: by the checkpoint.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="RGB standard deviation, like --mean.")] = None,
    label_set: Annotated[
        str | None,
        typer.Option(help="Classes: a name, or a YAML or JSON file; default: by the weights."),
    ] = None,
    input_kind: Annotated[
        Literal["frames", "tensor"],
        typer.Option("--input", help="uint8 frames NHWC, or a normalised float tensor NCHW."),
    ] = "frames",
    output_kind: Annotated[
        Outputs,
        typer.Option("--output", help="uint8 labels, with uint8 confidence, or float logits."),
    ] = "labels",
    optimize_for: Annotated[
        Runtime, typer.Option(help="Optimize the graph for this runtime.")
    ] = "tensorrt",
    upsample: Annotated[
        Upsample | None,
        typer.Option(help="Transposed convolutions, depth-to-space, or that in the head only."),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Convert the graph to FP16.")] = False,
    opset: Annotated[int, typer.Option(help="ONNX opset; TensorRT 8.6 reads up to 17.")] = 17,
    frames: Annotated[
        Path | None, typer.Option(help="Image, folder or video for --verify.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare with torch before writing.")] = True,
) -> None:
    """Export WEIGHTS to ONNX with folded BN, and compare the result with torch."""
    size_hw, batch_range = parse_size(size), parse_batch(batch)
    mean_rgb, std_rgb = _parse_rgb(mean, "--mean"), _parse_rgb(std, "--std")
    if frames is not None and not verify:
        raise InvalidInput(
            f"--frames {frames} has no effect with --no-verify", hint="omit one of the two"
        )
    from export.plan import ExportPlan
    from export.report import text_from_export
    from export.to_onnx import export_onnx

    plan = ExportPlan(
        size_hw=size_hw,
        batch=batch_range,
        input=input_kind,
        outputs=tuple(output_kind.split("+")),
        optimized_for=optimize_for,
        upsample=upsample,
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


app.add_typer(quantization_app)
app.add_typer(engine_app)


@command(
    app,
    examples=(
        "esnet-export inspect camvid.onnx",
        "esnet-export inspect camvid_fp16.engine",
        "esnet-export inspect camvid.onnx --label-set > classes.yaml",
    ),
    groups={"Output": "as_json label_set"},
)
def inspect(
    file: Annotated[Path, typer.Argument(help="ONNX file or engine.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    label_set: Annotated[
        bool, typer.Option("--label-set", help="Print only the classes, as a label set file.")
    ] = False,
) -> None:
    """Print the card and the graph of an ONNX file, or the record and the layers of an engine."""
    from export import report
    from export.engine.inspect import inspect_engine
    from export.inspect import inspect_onnx, label_set_yaml
    from runtime.artefact.engine_file import SUFFIXES

    if label_set:
        typer.echo(label_set_yaml(file))
    elif file.suffix.lower() in SUFFIXES:
        engine = inspect_engine(file)
        typer.echo(report.json_from_engine(engine) if as_json else report.text_of_engine(engine))
    else:
        model = inspect_onnx(file)
        typer.echo(
            report.json_from_inspection(model) if as_json else report.text_from_inspection(model)
        )


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
