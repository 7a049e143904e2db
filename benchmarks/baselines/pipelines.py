"""The ways from a uint8 frame to a uint8 class map with the same weights: other people's, and ours.

Every route takes a frame RGB uint8 (H, W, 3) and gives uint8 (H, W): nobody's conversion or argmax is left
out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esnet.checkpoint import Checkpoint, load_checkpoint
from export.engine.build import build_engine
from export.engine.trt_builder import BuildOptions
from export.plan import ExportPlan
from export.quantization.quantize import quantize
from export.to_onnx import export_onnx
from runtime.artefact.card import ModelCard
from runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from runtime.backends.tensorrt import TensorRtBackend
from runtime.errors import EsnetError
from runtime.segmenter import Segmenter
from runtime.tensorrt_api import KINDS

Route = Callable[[np.ndarray], np.ndarray]
OUR_NAME = "esnet-deploy"
_VARIANTS = (
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
)


Maker = Callable[[], tuple[Route, Path | None]]
"""Makes a route, and names the file that it runs; ``None`` for torch, which runs the weights."""


def pipeline_makers(
    weights: str,
    size_hw: tuple[int, int],
    folder: Path,
    stack: ExitStack,
    *,
    calibration: Path | None = None,
) -> dict[str, Maker]:
    """List every route that this machine may offer, torch eager first; each is made when it is called.

    Args:
        weights: Checkpoint, or the name of shipped weights.
        size_hw: Frame size.
        folder: Where artefacts go; what is there already is used again.
        stack: Closes what is opened.
        calibration: Frames to measure INT8 ranges on; ``None`` takes those that are shipped.
    """
    makers = dict(_cpu_makers(weights, size_hw, folder, stack, calibration))
    if torch.cuda.is_available():
        makers |= dict(_gpu_makers(weights, size_hw, folder, stack))
    return makers


def _cpu_makers(
    weights: str,
    size_hw: tuple[int, int],
    folder: Path,
    stack: ExitStack,
    calibration: Path | None,
) -> Iterator[tuple[str, Maker]]:
    def eager(**options: Any) -> tuple[Route, None]:
        return torch_route(load_checkpoint(weights), **options), None

    def ours(backend: str, precision: str) -> tuple[Route, Path]:
        path = _artefact(weights, size_hw, folder, backend)
        if precision == "int8":
            path = _quantized(path, calibration)
        opened = Segmenter.open(
            path, backend=backend, precision=None if precision == "int8" else precision
        )
        return stack.enter_context(opened).segment, path

    yield "torch eager fp32", eager
    yield "torch eager fp32, channels last", lambda: eager(channels_last=True)
    yield "torch.compile fp32", lambda: eager(compiled=True)
    yield "torch bf16, channels last", lambda: eager(channels_last=True, bf16=True)
    plain = folder / f"plain_{size_hw[0]}x{size_hw[1]}.onnx"
    yield (
        "torch.onnx.export, ONNX Runtime, numpy argmax",
        lambda: (plain_onnx_route(load_checkpoint(weights), size_hw, plain), plain),
    )
    yield (
        "torch.onnx.export, OpenVINO, numpy argmax",
        lambda: (plain_openvino_route(load_checkpoint(weights), size_hw, plain), plain),
    )
    for backend, precision in _VARIANTS:
        yield (
            f"{OUR_NAME}, {backend} {precision}",
            lambda backend=backend, precision=precision: ours(backend, precision),  # type: ignore[misc]
        )


def _gpu_makers(
    weights: str, size_hw: tuple[int, int], folder: Path, stack: ExitStack
) -> Iterator[tuple[str, Maker]]:
    def on_gpu(dtype: torch.dtype, **options: Any) -> tuple[Route, None]:
        return gpu_torch_route(weights, dtype, **options), None

    def over_onnxruntime(precision: str) -> tuple[Route, Path]:
        path = _artefact(weights, size_hw, folder, "tensorrt", precision)
        backend = OnnxRuntimeCudaBackend(path, ModelCard.from_file(path))
        return backend_route(stack.enter_context(backend)), path

    def over_tensorrt(kind: str, precision: str) -> tuple[Route, Path]:
        artefact = _artefact(weights, size_hw, folder, "tensorrt")
        plan = BuildOptions(precision=precision, tensorrt=kind)
        report = build_engine(artefact, None, plan, command=["esnet-bench", "compare"])
        backend = TensorRtBackend(report.path, report.record.card)
        return backend_route(stack.enter_context(backend)), report.path

    yield "torch eager fp32, CUDA", lambda: on_gpu(torch.float32)
    yield "torch eager fp16, CUDA", lambda: on_gpu(torch.float16)
    yield "torch.compile fp16, CUDA", lambda: on_gpu(torch.float16, compiled=True)
    plain = folder / f"plain_{size_hw[0]}x{size_hw[1]}.onnx"
    yield (
        "torch.onnx.export, ONNX Runtime CUDA, numpy argmax",
        lambda: (
            plain_onnx_route(
                load_checkpoint(weights), size_hw, plain, provider="CUDAExecutionProvider"
            ),
            plain,
        ),
    )
    for precision in ("fp32", "fp16"):
        yield (
            f"{OUR_NAME}, onnxruntime-cuda {precision}",
            lambda precision=precision: over_onnxruntime(precision),  # type: ignore[misc]
        )
        for kind in KINDS:
            yield (
                f"{OUR_NAME}, {kind} {precision}",
                lambda kind=kind, precision=precision: over_tensorrt(kind, precision),  # type: ignore[misc]
            )


def torch_route(
    checkpoint: Checkpoint,
    *,
    channels_last: bool = False,
    bf16: bool = False,
    compiled: bool = False,
) -> Route:
    """Run the network in torch on the CPU: the authors' forward pass, then argmax."""
    mean = torch.tensor(checkpoint.family.mean).view(1, 3, 1, 1)
    std = torch.tensor(checkpoint.family.std).view(1, 3, 1, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network: Any = checkpoint.network.to(memory_format=layout)  # type: ignore[call-overload]
    if compiled:
        network = torch.compile(network)

    def run(frame: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            x = ((x - mean) / std).contiguous(memory_format=layout)
            labels: np.ndarray = network(x)[0].argmax(0).to(torch.uint8).numpy()
        return labels

    return run


def gpu_torch_route(weights: str, dtype: torch.dtype, *, compiled: bool = False) -> Route:
    """Run the network in torch on the GPU, copies included; fp16 channels-last."""
    checkpoint = load_checkpoint(weights)
    layout = torch.channels_last if dtype == torch.float16 else torch.contiguous_format
    network: Any = checkpoint.network.cuda().to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
    if compiled:
        network = torch.compile(network, mode="max-autotune-no-cudagraphs")
    mean = torch.tensor(checkpoint.family.mean, device="cuda").view(1, 3, 1, 1)
    std = torch.tensor(checkpoint.family.std, device="cuda").view(1, 3, 1, 1)

    def run(frame: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(frame).cuda().permute(2, 0, 1)[None].float() / 255
            x = ((x - mean) / std).to(dtype=dtype, memory_format=layout)
            labels: np.ndarray = network(x)[0].argmax(0).to(torch.uint8).cpu().numpy()
        return labels

    return run


def plain_onnx_route(
    checkpoint: Checkpoint,
    size_hw: tuple[int, int],
    path: Path,
    *,
    provider: str = "CPUExecutionProvider",
) -> Route:
    """Export as the tutorials do, float in and logits out, run ONNX Runtime, take the argmax in numpy."""
    import onnxruntime as ort

    _export_plainly(checkpoint, size_hw, path)
    session = ort.InferenceSession(str(path), providers=[provider])
    if session.get_providers()[0] != provider:
        raise EsnetError(f"ONNX Runtime fell back from {provider}", hint="esnet-doctor tells more")
    return _float_route(checkpoint, lambda x: session.run(None, {"input": x})[0])


def plain_openvino_route(checkpoint: Checkpoint, size_hw: tuple[int, int], path: Path) -> Route:
    """Run the same plain export in OpenVINO with its defaults, which are bf16 on CPUs that have it."""
    from runtime.backends.openvino import shared_core

    _export_plainly(checkpoint, size_hw, path)
    compiled = shared_core().compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return _float_route(checkpoint, lambda x: compiled(x)[0])


def backend_route(backend: Any) -> Route:
    """Run one of our backends on frames of its own size."""
    return lambda frame: np.asarray(backend.infer(frame[None])[0][0])


def _float_route(checkpoint: Checkpoint, logits_of: Callable[[np.ndarray], np.ndarray]) -> Route:
    """Normalise in numpy before, take the argmax in numpy after."""
    mean = np.array(checkpoint.family.mean, np.float32)
    std = np.array(checkpoint.family.std, np.float32)

    def run(frame: np.ndarray) -> np.ndarray:
        scaled = (frame.astype(np.float32) / np.float32(255) - mean) / std
        x = np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
        labels: np.ndarray = logits_of(x)[0].argmax(0).astype(np.uint8)
        return labels

    return run


def _export_plainly(checkpoint: Checkpoint, size_hw: tuple[int, int], path: Path) -> None:
    if path.is_file():
        return
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


def _artefact(
    weights: str, size_hw: tuple[int, int], folder: Path, target: str, precision: str = "fp32"
) -> Path:
    path = folder / f"{target}_{precision}_{size_hw[0]}x{size_hw[1]}.onnx"
    if not path.is_file():
        plan = ExportPlan(size_hw=size_hw, precision=precision, optimized_for=target)
        export_onnx(weights, path, plan, verify=False)
    return path


def _quantized(path: Path, calibration: Path | None) -> Path:
    output = path.with_name(f"{path.stem}_int8.onnx")
    if not output.is_file():
        table = path.with_name("ranges.json")
        is_measured = calibration is not None and table.is_file()
        quantize(
            path,
            output,
            calibration=None if is_measured else calibration,
            table_path=table if calibration is not None else None,
            scheme_name="cpu",
        )
    return output
