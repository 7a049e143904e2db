"""Command ``esnet-export build-engine``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from runtime.console import command, parse_batch, parse_bytes
from runtime.errors import InvalidInput

app = typer.Typer()


@command(
    app,
    "build-engine",
    examples=(
        "esnet-export build-engine camvid.onnx --fp16 --frames photos/",
        "esnet-export build-engine camvid.onnx --fp16 --tensorrt tensorrt-rtx --target 'RTX 3060'",
    ),
    groups={
        "Precision": "fp32 fp16 int8 frames verify",
        "Engine": "tensorrt batch target version_compatible hardware_compatible",
        "Build": "device workspace optimization_level aux_streams timing_cache dry_run force",
        "Output": "output",
    },
)
def run_build_engine(
    model: Annotated[Path, typer.Argument(help="Artefact of to-onnx or quantize (.onnx).")],
    output: Annotated[
        Path | None,
        typer.Option("--output-file", "-o", help="Output file; default: by input name."),
    ] = None,
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
        Path | None,
        typer.Option(help="--fp16: compare on these; nodes that could overflow stay in FP32."),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="--fp16: compare with the FP32 artefact before building.")
    ] = True,
    workspace: Annotated[str | None, typer.Option(help="Scratch memory, such as 2GiB.")] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="Kernel timings; default: per TensorRT and GPU, in the cache."),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="Effort of TensorRT's search for kernels; default: 3."),
    ] = None,
    aux_streams: Annotated[
        int | None,
        typer.Option(
            min=0, help="Streams for layers that run at once, at most; default: TensorRT's choice."
        ),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Loadable by later versions, same major.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on other GPUs from Ampere on.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="GPU that builds, in CUDA's order: 0, 1, or cuda:1.")
    ] = None,
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
        device=device,
        optimization_level=optimization_level,
        aux_streams=aux_streams,
        timing_cache_path=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        frames=frames,
        verify=verify,
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
