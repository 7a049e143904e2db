"""Time the forms an export can have on each CPU backend: ``python -m scripts.forms --json FILE``.

From its results come the defaults of ``export.plan.FORMS``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.frames import load_frames
from benchmarks.report.console import print_report, write_json
from benchmarks.timing.latency import TimingConfig
from benchmarks.timing.suite import BenchOptions, bench_models
from export.plan import UPSAMPLES, ExportPlan
from export.to_onnx import export_onnx
from runtime.console import run_app


def main(
    weights: Annotated[str, typer.Argument(help="Checkpoint, or shipped weights.")] = "camvid",
    backend: Annotated[str, typer.Option(help="openvino or onnxruntime.")] = "openvino",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    frames: Annotated[Path | None, typer.Option(help="Image, folder or video.")] = None,
    max_seconds: Annotated[float, typer.Option(help="Longest measurement of a row.")] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Export the weights once for each way to upsample, and time them side by side."""
    frame_set = load_frames(frames, (512, 1024))
    with tempfile.TemporaryDirectory(prefix="esnet-forms-") as folder:
        paths = []
        for upsample in UPSAMPLES:
            path = Path(folder) / f"{upsample}.onnx"
            export_onnx(
                weights, path, ExportPlan(optimized_for=backend, upsample=upsample), verify=False
            )
            paths.append(path)
        options = BenchOptions(
            backends=[backend],
            precisions=[precision],
            protocol=TimingConfig(cap_seconds=max_seconds),
        )
        report = bench_models(paths, frame_set, options)
    print_report(report)
    if json_file is not None:
        write_json(report, json_file)


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
