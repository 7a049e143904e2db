"""Pipelines that label a frame with the same weights: torch, plain ONNX exports, and this toolkit.

Normalisation, copies and argmax are part of every pipeline, so that end-to-end times are comparable.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from esnet.checkpoint import Checkpoint, load_checkpoint
from esnet.model import normalise
from export.engine.build import build_engine
from export.engine.trt_builder import BuildOptions
from export.plan import ExportPlan
from export.quantization.quantize import QuantizeOptions, quantize
from export.to_onnx import export_onnx
from runtime.backend import open_backend
from runtime.backends.base import Backend
from runtime.errors import BackendUnavailable
from runtime.media import frames as media
from runtime.segmenter import Segmenter
from runtime.tensorrt_api import KINDS

Pipeline = Callable[[np.ndarray], np.ndarray]
"""RGB uint8 frame (H, W, 3) -> uint8 labels (H, W)."""

_OURS = "esnet-deploy"
_CPU_VARIANTS = {"openvino": ("fp32", "bf16", "int8"), "onnxruntime": ("fp32", "int8")}
_GPU_VARIANTS = {backend: ("fp32", "fp16") for backend in ("onnxruntime-cuda", *KINDS)}
CPU_PRECISIONS = {
    f"{_OURS}, {backend} {precision}": precision
    for backend, precisions in _CPU_VARIANTS.items()
    for precision in precisions
}
"""Name of a CPU pipeline of this toolkit -> its precision."""


@dataclass(frozen=True, slots=True)
class PipelineSetup:
    """Inputs shared by all pipelines of a comparison."""

    weights: str
    """Checkpoint, or name of shipped weights."""
    size_hw: tuple[int, int]
    """Frame size, multiples of 8."""
    folder: Path
    """Folder for exported files; files that exist are reused."""
    calibration: Path | None = None
    """Frames to measure INT8 activation ranges on; ``None`` uses the ranges shipped with the weights."""
    device: int | None = None
    """CUDA's number of the GPU; ``None`` is the first."""


Maker = Callable[[PipelineSetup], tuple[Pipeline, Path | None]]
"""Makes a pipeline; also returns the file that it runs, ``None`` for torch, which runs the checkpoint."""


def pipeline_makers() -> dict[str, Maker]:
    """List the pipelines for this machine by name, torch eager fp32 first; GPU pipelines only with CUDA."""
    channels_last = partial(_make_torch, channels_last=True)
    plain_onnx = partial(_make_plain, plain_onnx_pipeline)
    makers: dict[str, Maker] = {
        "torch eager fp32": _make_torch,
        "torch eager fp32, channels last": channels_last,
        "torch.compile fp32": partial(_make_torch, compiled=True),
        "torch bf16, channels last": partial(channels_last, dtype=torch.bfloat16),
        "torch.onnx.export, ONNX Runtime, numpy argmax": plain_onnx,
        "torch.onnx.export, OpenVINO, numpy argmax": partial(_make_plain, plain_openvino_pipeline),
    }
    variants = dict(_CPU_VARIANTS)
    if torch.cuda.is_available():
        fp16 = partial(channels_last, device="cuda", dtype=torch.float16)
        makers |= {
            "torch eager fp32, CUDA": partial(_make_torch, device="cuda"),
            "torch eager fp16, CUDA": fp16,
            "torch.compile fp16, CUDA": partial(fp16, compiled=True),
            "torch.onnx.export, ONNX Runtime CUDA, numpy argmax": lambda setup: plain_onnx(
                setup, provider="CUDAExecutionProvider", device=setup.device or 0
            ),
        }
        variants |= _GPU_VARIANTS
    for backend, precisions in variants.items():
        for precision in precisions:
            ours = partial(_make_ours, backend=backend, precision=precision)
            makers[f"{_OURS}, {backend} {precision}"] = ours
    return makers


def torch_pipeline(
    checkpoint: Checkpoint,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    compiled: bool = False,
) -> Pipeline:
    """Run the network in torch, copies to and from the device included.

    Args:
        checkpoint: Network, which is copied, and normalisation.
        device: Device of the network.
        dtype: On a GPU the type of weights and activations; on the CPU the type of ``torch.autocast``.
        channels_last: Use the channels-last memory format; fp16 on tensor cores is faster with it.
        compiled: Use ``torch.compile``; the first frame compiles.
    """
    is_autocast = device == "cpu" and dtype != torch.float32
    layout = {
        "dtype": torch.float32 if is_autocast else dtype,
        "memory_format": torch.channels_last if channels_last else torch.contiguous_format,
    }
    network: Any = copy.deepcopy(checkpoint.network).to(device=device, **layout)  # type: ignore[call-overload]
    if compiled:
        mode = "max-autotune-no-cudagraphs" if device == "cuda" else None
        network = torch.compile(network, mode=mode)
    mean, std = checkpoint.family.mean, checkpoint.family.std

    def run(frame: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=is_autocast):
            images = normalise(torch.from_numpy(frame)[None].to(device), mean, std).to(**layout)  # type: ignore[call-overload]
            labels: np.ndarray = network(images)[0].argmax(0).to(torch.uint8).cpu().numpy()
        return labels

    return run


def plain_onnx_pipeline(
    checkpoint: Checkpoint,
    size_hw: tuple[int, int],
    path: Path,
    *,
    provider: str = "CPUExecutionProvider",
    device: int = 0,
) -> Pipeline:
    """Run a plain ``torch.onnx.export`` in ONNX Runtime; normalisation and argmax run in numpy.

    The file at ``path``, float32 (1, 3, H, W) in, logits out, is written if it does not exist. ``device`` is
    CUDA's number of the GPU.

    Raises:
        BackendUnavailable: ONNX Runtime does not run the provider on this machine.
    """
    import onnxruntime as ort

    _export_plainly(checkpoint, size_hw, path)
    options = {"device_id": str(device)} if provider.startswith("CUDA") else {}
    session = ort.InferenceSession(str(path), providers=[(provider, options)])
    if session.get_providers()[0] != provider:
        raise BackendUnavailable(
            f"ONNX Runtime fell back from {provider} to {session.get_providers()[0]}",
            hint="run esnet-doctor to find the cause",
        )
    return _numpy_pipeline(checkpoint, lambda images: session.run(None, {"input": images})[0])


def plain_openvino_pipeline(
    checkpoint: Checkpoint, size_hw: tuple[int, int], path: Path
) -> Pipeline:
    """Run the export of ``plain_onnx_pipeline`` in OpenVINO at its default precision (bf16 if available)."""
    from runtime.backends.openvino import shared_core

    _export_plainly(checkpoint, size_hw, path)
    compiled = shared_core().compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return _numpy_pipeline(checkpoint, lambda images: compiled(images)[0])


def backend_pipeline(backend: Backend) -> Pipeline:
    """Run an open backend of this toolkit through ``Segmenter``; the caller closes the backend."""
    return Segmenter(backend).segment


def _make_torch(setup: PipelineSetup, **options: Any) -> tuple[Pipeline, None]:
    if options.get("device") == "cuda" and setup.device is not None:
        torch.cuda.set_device(setup.device)  # each pipeline has a process of its own
    return torch_pipeline(load_checkpoint(setup.weights), **options), None


def _make_plain(
    make: Callable[..., Pipeline], setup: PipelineSetup, **options: Any
) -> tuple[Pipeline, Path]:
    path = setup.folder / f"plain_{setup.size_hw[0]}x{setup.size_hw[1]}.onnx"
    return make(load_checkpoint(setup.weights), setup.size_hw, path, **options), path


def _make_ours(setup: PipelineSetup, *, backend: str, precision: str) -> tuple[Pipeline, Path]:
    """Export for a backend, quantize or build an engine where needed, and open the result."""
    form = "tensorrt" if backend in _GPU_VARIANTS else backend
    exported = precision if backend == "onnxruntime-cuda" else "fp32"
    height, width = setup.size_hw
    path = setup.folder / f"{form}_{exported}_{height}x{width}.onnx"
    if not path.is_file():
        plan = ExportPlan(size_hw=setup.size_hw, precision=exported, optimized_for=form)
        export_onnx(setup.weights, path, plan, verify=False)
    if precision == "int8":
        path = _quantized(path, setup.calibration)
    if backend in KINDS:
        options = BuildOptions(
            precision=precision, tensorrt=backend, device=setup.device, verify=False
        )
        path = build_engine(path, None, options, command=["esnet-bench", "compare"]).path
    is_in_file = precision == "int8" or backend in KINDS
    device = setup.device if backend in _GPU_VARIANTS else None
    opened = open_backend(path, backend, precision=None if is_in_file else precision, device=device)
    return backend_pipeline(opened), path


def _numpy_pipeline(
    checkpoint: Checkpoint, logits_of: Callable[[np.ndarray], np.ndarray]
) -> Pipeline:
    mean, std = checkpoint.family.mean, checkpoint.family.std

    def run(frame: np.ndarray) -> np.ndarray:
        logits = logits_of(media.normalise(frame[None], mean, std))
        labels: np.ndarray = logits[0].argmax(0).astype(np.uint8)
        return labels

    return run


def _export_plainly(checkpoint: Checkpoint, size_hw: tuple[int, int], path: Path) -> None:
    if path.is_file():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notices of the exporter
        torch.onnx.export(
            checkpoint.network,
            (torch.zeros(1, 3, *size_hw),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
        )


def _quantized(path: Path, calibration: Path | None) -> Path:
    """Quantize an artefact; measured activation ranges are reused for other backends and sizes."""
    output = path.with_name(f"{path.stem}_int8.onnx")
    if not output.is_file():
        table = None if calibration is None else path.with_name("ranges.json")
        source = None if table is not None and table.is_file() else calibration
        options = QuantizeOptions(
            calibration=source, table_path=table, scheme="cpu", min_agreement=0.0
        )
        quantize(path, output, options)
    return output
