"""Command ``esnet-export quantize``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from runtime.console import command
from runtime.errors import InvalidInput

app = typer.Typer()

Method = Literal["percentile", "entropy", "mse", "max"]


@command(
    app,
    "quantize",
    examples=(
        "esnet-export quantize camvid.onnx -o camvid-int8.onnx",
        "esnet-export quantize camvid.onnx --calibration photos/ --data camvid/ --scheme cpu",
    ),
    groups={
        "Ranges": "calibration table count method",
        "Graph": "scheme keep",
        "Check": "data dataset label_set max_miou_drop min_agreement",
        "Output": "output trt_cache sensitivity",
    },
)
def run_quantize(
    model: Annotated[Path, typer.Argument(help="FP32 artefact of to-onnx.")],
    output: Annotated[
        Path | None,
        typer.Option("--output-file", "-o", help="Output file; default: by input name."),
    ] = None,
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
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Percentage of labels that must agree with FP32 on real frames."
        ),
    ] = 95.0,
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
        min_agreement=min_agreement / 100,
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


def _require(needed: object, name: str, **options: object) -> None:
    """Raise ``InvalidInput`` if one of the options is given without the option that it belongs to."""
    for option, value in options.items():
        if value is not None and needed is None:
            raise InvalidInput(
                f"{option} {value} has no effect without {name}",
                hint=f"add {name}, or omit {option}",
            )
