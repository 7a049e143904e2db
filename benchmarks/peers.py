"""The same weights by other routes, in one run: ``python -m benchmarks.peers WEIGHTS --json FILE``.

Every route takes a uint8 frame and gives a uint8 class map: nobody's conversion or argmax is left out.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet, load_frames
from benchmarks.latency import END_TO_END, Protocol, Subject, cycle, measure_latency
from benchmarks.statistics import Summary, label_agreement
from esnet.checkpoint import Checkpoint, load_checkpoint
from esnet.errors import EsnetError
from export.errors import ExportError
from export.plan import ExportPlan
from export.to_onnx import export_onnx
from runtime.console import parse_size, run_app
from runtime.errors import RunError
from runtime.files import atomic_path
from runtime.segmenter import Segmenter

Route = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PeerResult:
    """One route's speed, and how far it labels as torch does."""

    name: str
    """The route."""
    summary: Summary
    """Frame in, class map out, milliseconds."""
    speed: float
    """Median of torch eager over this route's median."""
    agreement: float
    """Share of pixels labelled as torch eager labels them."""


def compare_routes(
    routes: dict[str, Route], frames: FrameSet, protocol: Protocol
) -> list[PeerResult]:
    """Time routes interleaved; the first is the reference of speed and agreement."""
    pictures = cycle(frames.frames)
    subjects = [
        Subject(name=name, scope=END_TO_END, call=lambda i, route=route: route(pictures(i)))  # type: ignore[misc]
        for name, route in routes.items()
    ]
    summaries = measure_latency(subjects, protocol)
    labels = [[route(frame) for frame in frames.frames] for route in routes.values()]
    return [
        PeerResult(
            name=name,
            summary=summary,
            speed=summaries[0].p50 / summary.p50,
            agreement=label_agreement(own, labels[0]),
        )
        for name, summary, own in zip(routes, summaries, labels, strict=True)
    ]


def torch_route(
    checkpoint: Checkpoint, *, channels_last: bool = False, bf16: bool = False
) -> Route:
    """Run the network in torch: the authors' forward pass, then argmax."""
    mean = torch.tensor(checkpoint.family.mean).view(1, 3, 1, 1)
    std = torch.tensor(checkpoint.family.std).view(1, 3, 1, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = checkpoint.network.to(memory_format=layout)  # type: ignore[call-overload]

    def run(frame: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            x = ((x - mean) / std).contiguous(memory_format=layout)
            labels: np.ndarray = network(x)[0].argmax(0).to(torch.uint8).numpy()
        return labels

    return run


def plain_onnx_route(checkpoint: Checkpoint, size_hw: tuple[int, int], folder: Path) -> Route:
    """Export as the tutorials do, float in and logits out, run ONNX Runtime, take the argmax in numpy."""
    import onnxruntime as ort

    path = folder / "plain.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notices
        torch.onnx.export(
            checkpoint.network,
            (torch.zeros(1, 3, *size_hw),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
        )
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    mean = np.array(checkpoint.family.mean, np.float32)
    std = np.array(checkpoint.family.std, np.float32)

    def run(frame: np.ndarray) -> np.ndarray:
        scaled = (frame.astype(np.float32) / np.float32(255) - mean) / std
        x = np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
        labels: np.ndarray = session.run(None, {"input": x})[0][0].argmax(0).astype(np.uint8)
        return labels

    return run


def our_routes(
    weights: str,
    size_hw: tuple[int, int],
    folder: Path,
    variants: Sequence[tuple[str, str]],
    stack: ExitStack,
) -> dict[str, Route]:
    """Export for each backend and open it at each precision that this machine offers."""
    routes: dict[str, Route] = {}
    for backend, precision in variants:
        path = folder / f"{backend}.onnx"
        if not path.exists():
            plan = ExportPlan(size_hw=size_hw, target=backend)
            export_onnx(weights, path, plan, verify=False)
        try:
            segmenter = stack.enter_context(
                Segmenter.open(path, backend=backend, precision=precision)
            )
        except RunError as error:
            print(f"left out: {backend} {precision}: {error}")
            continue
        routes[f"esnet-deploy, {backend} {precision}"] = segmenter.segment
    return routes


VARIANTS = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))


def main(
    weights: Annotated[str, typer.Argument(help="Checkpoint, or shipped weights.")] = "camvid",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH.")] = "512x1024",
    frames: Annotated[Path | None, typer.Option(help="Image, folder or video.")] = None,
    max_seconds: Annotated[float, typer.Option(help="Longest measurement of a route.")] = 20.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here.")
    ] = None,
) -> None:
    """Compare torch eager, the plain export, and this toolkit's artefacts on the same frames."""
    size_hw = parse_size(size)
    environment = describe_environment()
    frame_set = load_frames(frames, size_hw)
    checkpoint = load_checkpoint(weights)
    with tempfile.TemporaryDirectory(prefix="esnet-peers-") as name, ExitStack() as stack:
        folder = Path(name)
        plain = plain_onnx_route(checkpoint, size_hw, folder)
        routes: dict[str, Route] = {
            "torch eager fp32": torch_route(checkpoint),
            "torch eager fp32, channels last": torch_route(
                load_checkpoint(weights), channels_last=True
            ),
            "torch autocast bf16, channels last": torch_route(
                load_checkpoint(weights), channels_last=True, bf16=True
            ),
            "torch.onnx.export + onnxruntime + numpy": plain,
            **our_routes(weights, size_hw, folder, VARIANTS, stack),
        }
        results = compare_routes(routes, frame_set, Protocol(cap_seconds=max_seconds))
    _print(results, environment, frame_set)
    if json_file is not None:
        content = {
            "schema": 1,
            "mode": "peers",
            "weights_sha256": checkpoint.sha256,
            "frames": frame_set.description,
            "environment": environment,
            "results": [dataclasses.asdict(result) for result in results],
        }
        with atomic_path(json_file) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


def _print(results: list[PeerResult], environment: dict[str, str], frames: FrameSet) -> None:
    console = Console(highlight=False, width=110)
    for key, value in {**environment, "frames": frames.description}.items():
        console.print(f"{key:>10}  {value}", markup=False, soft_wrap=True)
    table = Table(
        box=box.SIMPLE_HEAD, title="uint8 frame in, uint8 class map out", title_justify="left"
    )
    for column in ("route", "n", "p50 ms", "95 % interval", "speed", "agree"):
        table.add_column(column, justify="left" if column == "route" else "right")
    for result in results:
        summary = result.summary
        table.add_row(
            result.name,
            str(summary.n),
            f"{summary.p50:.1f}",
            f"{summary.p50_low:.1f}-{summary.p50_high:.1f}",
            f"{result.speed:.2f}x",
            f"{100 * result.agreement:.2f} %",
        )
    console.print(table)


if __name__ == "__main__":
    run_app(lambda: typer.run(main), BenchmarkError, EsnetError, ExportError, RunError)
