"""The GPU backends with a fake TensorRT or ONNX Runtime, whose engine is a host function on the stub."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import read_record
from runtime.backends.gpu import GpuBackend
from runtime.cuda.device import open_device
from tests.cuda_stub import stub
from tests.fake_trt import fake_tensorrt
from tests.gpu_rules.rules import expected, run_engine

SIZE = (64, 128)
AMPERE = {"CUDA_STUB_SM": "86"}
"""The GPU of the engines."""
RTX = "rtx 1.7.1"


def frames_of(count: int, seed: int = 0) -> np.ndarray:
    """Make a batch of noise, uint8 (count, *SIZE, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), np.uint8)


def gives_its_results(backend: GpuBackend, frames: np.ndarray) -> bool:
    """Run a batch and compare its results with the engine's."""
    return all(map(np.array_equal, backend.infer(frames), expected(frames)))


def use_tensorrt(generation: str, *, name: str = "tensorrt", **settings: Any) -> Any:
    """Install a fake TensorRT that enqueues on the given stream, and get its module."""
    module = sys.modules[name] = fake_tensorrt(generation, **settings)

    def run(_: Any, shape: Any, addresses: dict[str, int], stream: int, check: Any) -> bool:
        targets = [addresses["labels"], addresses["confidence"]]
        run_engine(addresses["frames"], targets, tuple(shape), stream, check)
        return True

    module.state.run = run
    module.state.is_capturing = stub.is_capturing
    module.state.check_memory = lambda address, size: stub.memory(address, (size,))
    return module


def open_engine(
    library: str,
    path: str | Path,
    *,
    card: ModelCard | None = None,
    index: int = 0,
    **settings: Any,
) -> Any:
    """Open an engine with the TensorRT that is installed, on a GPU."""
    from runtime.backends.tensorrt import TensorRtBackend

    card = card or read_record(Path(path)).card
    return TensorRtBackend(Path(path), card, device=open_device(library, index=index), **settings)


def use_onnxruntime(provider: str = "CUDAExecutionProvider") -> Any:
    """Install a fake ONNX Runtime whose CUDA provider enqueues on the user's stream, and get its module.

    Args:
        provider: Provider of its sessions.
    """
    module = sys.modules["onnxruntime"] = _fake_onnxruntime(provider)
    sys.modules.pop("runtime.backends.onnxruntime", None)
    sys.modules.pop("runtime.backends.onnxruntime_cuda", None)
    return module


def open_onnx(library: str, path: str, *, index: int = 0, **settings: Any) -> Any:
    """Open an ONNX file with the ONNX Runtime that is installed, on a GPU."""
    from runtime.backends import onnxruntime_cuda

    onnxruntime_cuda._is_installed = lambda name: name == "onnxruntime-gpu"
    card, device = ModelCard.from_file(Path(path)), open_device(library, index=index)
    return onnxruntime_cuda.OnnxRuntimeCudaBackend(Path(path), card, device=device, **settings)


def _fake_onnxruntime(provider: str) -> Any:
    """Make a module with what the backend uses of ONNX Runtime."""

    class Binding:
        def __init__(self, gpu: int) -> None:
            self.bound: dict[str, tuple[tuple[int, ...], int]] = {}
            self.gpu = gpu

        def bind_input(self, name, kind, index, dtype, shape, address) -> None:
            assert (kind, index) == ("cuda", self.gpu)
            self.bound[name] = shape, address

        bind_output = bind_input

    class Session:
        def __init__(self, path, sess_options, providers, enable_fallback) -> None:
            assert enable_fallback == 0
            ((_, self.options),) = providers
            if module.opening_problem:
                raise RuntimeError(module.opening_problem)

        def get_providers(self):
            return [provider]

        def io_binding(self):
            return Binding(int(self.options["device_id"]))

        def run_with_iobinding(self, binding, options) -> None:
            assert options.entries == {"disable_synchronize_execution_providers": "1"}
            if module.run_problem:
                raise RuntimeError(module.run_problem)
            shape, source = binding.bound["frames"]
            targets = [binding.bound[name][1] for name in ("labels", "confidence")]
            run_engine(source, targets, shape, int(self.options["user_compute_stream"]))

    class RunOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, key, value) -> None:
            self.entries[key] = value

    module = SimpleNamespace(
        __version__="1.31.1",
        opening_problem="",
        run_problem="",
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda *_, **__: None,
        InferenceSession=Session,
        RunOptions=RunOptions,
        SessionOptions=SimpleNamespace,
        GraphOptimizationLevel=SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0),
    )
    return module
