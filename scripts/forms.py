"""Time the upsampling forms of an export on a CPU backend; ``export.plan.FORMS`` uses the results."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.frames import load_frames
from benchmarks.models import BenchOptions
from benchmarks.report.console import document_from_report
from benchmarks.report.tables import publish
from benchmarks.timing.latency import TimingConfig
from benchmarks.timing.suite import bench_models
from export.plan import UPSAMPLES, ExportPlan
from export.to_onnx import export_onnx
from runtime.console import run_app


def main(
    weights: Annotated[str, typer.Argument(help="Checkpoint, or shipped weights.")] = "camvid",
    backend: Annotated[Literal["openvino", "onnxruntime"], typer.Option()] = "openvino",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option()] = "fp32",
    frames: Annotated[Path | None, typer.Option(help="Image, folder or video.")] = None,
    max_seconds: Annotated[float, typer.Option(help="Maximum time per model and scope.")] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Export the weights with each upsampling form and compare their speed."""
    config = TimingConfig(cap_seconds=max_seconds)
    options = BenchOptions(backends=[backend], precisions=[precision], config=config)
    with tempfile.TemporaryDirectory(prefix="esnet-forms-") as folder:
        paths = [Path(folder) / f"{upsample}.onnx" for upsample in UPSAMPLES]
        for path in paths:
            plan = ExportPlan(optimized_for=backend, upsample=path.stem)
            export_onnx(weights, path, plan, verify=False)
        report = bench_models(paths, load_frames(frames, (512, 1024)), options)
    publish(document_from_report(report), report.as_dict(), json_file)


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
