"""``esnet-export``: the commands to-onnx, quantize, build-engine and inspect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from runtime.console import new_app, parse_batch, parse_bytes, parse_size, run_app
from runtime.errors import InvalidInput

app = new_app("Export ESNet weights to ONNX, quantize them, build engines, and inspect artefacts.")

OutputFile = Annotated[
    Path | None, typer.Option("--output-file", "-o", help="Output file; default: by input name.")
]
Runtime = Literal["tensorrt", "openvino", "onnxruntime"]
Upsample = Literal["transpose", "subpixel", "mixed"]
Outputs = Literal["labels", "labels+confidence", "logits"]
Method = Literal["percentile", "entropy", "mse", "max"]


@app.command("to-onnx")
def to_onnx(
    weights: Annotated[str, typer.Argument(help="Checkpoint file, or shipped weights: camvid.")],
    output: OutputFile = None,
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


@app.command("quantize")
def run_quantize(
    model: Annotated[Path, typer.Argument(help="FP32 artefact of to-onnx.")],
    output: OutputFile = None,
    calibration: Annotated[
        str | None, typer.Option(help="Images, video or list; default: the weights' own ranges.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Range table to use, or to write after calibration.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of calibration frames; default: 128.")
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="Method of --calibration; default: mse.")
    ] = None,
    scheme: Annotated[
        Literal["tensorrt", "cpu"] | None,
        typer.Option(help="tensorrt: symmetric int8; cpu: uint8. Default: by the artefact."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Block or convolution to keep in float; repeatable.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder: check mIoU on its val split.")
    ] = None,
    dataset: Annotated[
        Literal["camvid", "cityscapes", "folder"] | None,
        typer.Option(help="Dataset in --data; default: by the artefact's classes."),
    ] = None,
    label_set: Annotated[
        str | None,
        typer.Option(help="Classes of --data; default: the dataset's or the artefact's."),
    ] = None,
    max_miou_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Points of mIoU that INT8 may cost on --data; default: 0.5."),
    ] = None,
    trt_cache: Annotated[
        Path | None,
        typer.Option("--write-trt-cache", help="TensorRT 8.6 calibration cache to write."),
    ] = None,
    sensitivity: Annotated[
        Path | None, typer.Option(help="Measure each block alone; image to write (.png, .svg).")
    ] = None,
) -> None:
    """Quantize MODEL to INT8, and check it on every installed backend before writing."""
    _require(calibration, "--calibration", **{"--count": count, "--method": method})
    _require(
        data,
        "--data",
        **{"--max-miou-drop": max_miou_drop, "--dataset": dataset, "--label-set": label_set},
    )
    from export.quantization.check import open_labelled
    from export.quantization.quantize import QuantizeOptions, quantize
    from export.report import progress, text_from_quantization

    options = QuantizeOptions(
        calibration=calibration,
        table_path=table,
        count=count or 128,
        method=method or "mse",
        scheme=scheme,
        keep=keep or (),
        max_miou_drop=0.5 if max_miou_drop is None else max_miou_drop,
        trt_cache_path=trt_cache,
        sensitivity_path=sensitivity,
    )
    command = ["esnet-export", *sys.argv[1:]]
    labelled = open_labelled(model, data, dataset=dataset, label_set=label_set)
    with progress() as on_frame:
        report = quantize(
            model, output, options, labelled=labelled, command=command, on_frame=on_frame
        )
    typer.echo(text_from_quantization(report))


@app.command("build-engine")
def run_build_engine(
    model: Annotated[Path, typer.Argument(help="Artefact of to-onnx or quantize (.onnx).")],
    output: OutputFile = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="FP32 without TF32.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8, from a quantized artefact.")] = False,
    tensorrt: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx"],
        typer.Option(help="TensorRT library; auto: the first installed."),
    ] = "auto",
    batch: Annotated[
        str | None, typer.Option(help="Batch MIN:OPT:MAX; default: the artefact's range.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU to build for, RTX 3060 or sm_86; repeatable. TensorRT-RTX builds for RTX 30 to 50 by "
            "default, on a Turing machine for Turing."
        ),
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(help="--fp16: keep nodes in FP32 that could overflow on these.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Scratch memory, such as 2GiB.")] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="Kernel timings; default: per TensorRT and GPU, in the cache."),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Loadable by later versions, same major.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on other GPUs from Ampere on.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be built.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even if up to date.")] = False,
) -> None:
    """Build a TensorRT engine from MODEL, and check the precision that it computes in."""
    from export.engine.build import build_engine
    from export.engine.trt_builder import BuildOptions
    from export.report import text_from_engine, wait_for_build
    from runtime.machine.gpus import sm_of

    options = BuildOptions(
        precision=_one_of(fp32=fp32, fp16=fp16, int8=int8),
        tensorrt=tensorrt,
        batch=parse_batch(batch) if batch else None,
        workspace_bytes=parse_bytes(workspace) if workspace else None,
        sms=tuple(dict.fromkeys(sm_of(text) for text in target or ())),
        timing_cache_path=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        frames=frames,
    )
    report = build_engine(
        model,
        output,
        options,
        command=["esnet-export", *sys.argv[1:]],
        force=force,
        dry_run=dry_run,
        wait=wait_for_build,
    )
    typer.echo(text_from_engine(report))


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="ONNX file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    label_set: Annotated[
        bool, typer.Option("--label-set", help="Print only the classes, as a label set file.")
    ] = False,
) -> None:
    """Print the card, inputs, outputs, operators and types of an ONNX file."""
    from export.inspect import inspect_onnx, label_set_yaml
    from export.report import json_from_inspection, text_from_inspection

    if label_set:
        typer.echo(label_set_yaml(file))
        return
    inspection = inspect_onnx(file)
    typer.echo(json_from_inspection(inspection) if as_json else text_from_inspection(inspection))


def _require(needed: object, name: str, **options: object) -> None:
    """Raise ``InvalidInput`` if one of the options is given without the option that it belongs to."""
    for option, value in options.items():
        if value is not None and needed is None:
            raise InvalidInput(
                f"{option} {value} has no effect without {name}",
                hint=f"add {name}, or omit {option}",
            )


def _one_of(**flags: bool) -> str:
    """Get the name of the one flag that is set."""
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) != 1:
        given = " and ".join(f"--{name}" for name in chosen) or "none"
        raise InvalidInput(
            f"give one of {', '.join(f'--{name}' for name in flags)}, got {given}",
            hint="--fp16 is best on GPUs from Turing on; GTX 10xx: --fp32 or --int8",
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
