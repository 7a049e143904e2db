"""Both GPU backends on real CUDA libraries.

A fake TensorRT and a fake ONNX Runtime enqueue a host function as their engine.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import EngineRecord, read_record, write_engine
from runtime.cuda.device import open_device
from runtime.errors import BackendUnavailable, EngineMismatch, EsnetError
from tests.contract import CHECKS
from tests.cuda_stub import stub
from tests.fake_trt import GENERATIONS, build_plan, fake_tensorrt
from tests.gpu_rules.rules import expected, on_stub, run_engine, untyped

SIZE = (64, 128)
AMPERE = {"CUDA_STUB_SM": "86"}


def frames_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), np.uint8)


@pytest.fixture(scope="session")
def onnx_file(make_artefact: Callable[..., Path]) -> Path:
    """A small artefact with labels and confidence."""
    return make_artefact(outputs=("labels", "confidence"))


@pytest.fixture(scope="session")
def engines(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine of every TensorRT generation, ``GENERATION.engine``, for SM 8.6."""
    folder = tmp_path_factory.mktemp("engines")
    card = ModelCard.from_file(onnx_file)
    for generation in GENERATIONS:
        plan = build_plan(fake_tensorrt(generation), onnx_file.read_bytes(), card.batch)
        record = EngineRecord(
            card=card,
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            onnx={},
            tensorrt={"kind": "tensorrt", "version": generation},
            target={"sms": ["8.6"]},
            precision={},
            profile=card.batch,
            kernels={},
            build={"command": "esnet-export build-engine small.onnx"},
        )
        write_engine(folder / f"{generation}.engine", plan, record)
    return folder


def open_tensorrt(library: str, folder: str, generation: str, **settings: Any) -> Any:
    """Open the engine of a generation with a fake TensorRT that enqueues on the given stream."""
    from runtime.backends.tensorrt import TensorRtBackend

    module = sys.modules["tensorrt"] = fake_tensorrt(generation)

    def run(_: Any, shape: Any, addresses: dict[str, int], stream: int, check: Any) -> bool:
        targets = [addresses["labels"], addresses["confidence"]]
        run_engine(addresses["frames"], targets, tuple(shape), stream, check)
        return True

    module.state.run = run
    module.state.is_capturing = stub.is_capturing
    module.state.check_memory = lambda address, size: stub.memory(address, (size,))
    path = Path(folder) / f"{generation}.engine"
    return TensorRtBackend(path, read_record(path).card, device=open_device(library), **settings)


def open_onnxruntime(
    library: str, path: str, *, provider: str = "CUDAExecutionProvider", **settings: Any
) -> Any:
    """Open an ONNX file with a fake ONNX Runtime whose CUDA provider enqueues on the user's stream."""
    sys.modules["onnxruntime"] = fake_onnxruntime(provider)  # type: ignore[assignment]
    sys.modules.pop("runtime.backends.onnxruntime", None)
    sys.modules.pop("runtime.backends.onnxruntime_cuda", None)
    from runtime.backends import onnxruntime_cuda

    onnxruntime_cuda._is_installed = lambda name: name == "onnxruntime-gpu"
    card = ModelCard.from_file(Path(path))
    device = open_device(library)
    return onnxruntime_cuda.OnnxRuntimeCudaBackend(Path(path), card, device=device, **settings)


def fake_onnxruntime(provider: str) -> Any:
    """Make a module with what the backend uses of ONNX Runtime."""

    class Binding:
        def __init__(self) -> None:
            self.bound: dict[str, tuple[tuple[int, ...], int]] = {}

        def bind_input(self, name, kind, index, dtype, shape, address) -> None:
            assert (kind, index) == ("cuda", 0)
            self.bound[name] = shape, address

        bind_output = bind_input

    class Session:
        def __init__(self, path, sess_options=None, providers=(), **_) -> None:
            ((_, self.options),) = providers

        def get_providers(self):
            return [provider]

        io_binding = staticmethod(Binding)

        def run_with_iobinding(self, binding, options) -> None:
            assert options.entries == {"disable_synchronize_execution_providers": "1"}
            shape, source = binding.bound["frames"]
            targets = [binding.bound[name][1] for name in ("labels", "confidence")]
            run_engine(source, targets, shape, int(self.options["user_compute_stream"]))

    class RunOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, key, value) -> None:
            self.entries[key] = value

    return SimpleNamespace(
        __version__="1.31.1",
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda *_, **__: None,
        InferenceSession=Session,
        RunOptions=RunOptions,
        SessionOptions=SimpleNamespace,
        GraphOptimizationLevel=SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0),
    )


def check_results(backend: Any) -> None:
    """Run batches one by one, then in flight, and compare every result."""
    with backend:
        for seed, count in enumerate((1, 3, 8, 3, 3, 3, 1)):
            frames = frames_of(count, seed)
            assert all(map(np.array_equal, backend.infer(frames), expected(frames)))
        flying = []
        for seed in range(20):
            if len(flying) == 3:
                ticket, frames = flying.pop(0)
                assert all(map(np.array_equal, backend.collect(ticket), expected(frames)))
            frames = frames_of(1 + seed % 4, seed)
            flying.append((backend.submit(frames), frames))
        for ticket, frames in flying:
            assert all(map(np.array_equal, backend.collect(ticket), expected(frames)))


@pytest.mark.parametrize("generation", GENERATIONS)
@on_stub(environment=AMPERE)
def test_tensorrt_gives_the_engines_results(library, engines, generation):
    check_results(open_tensorrt(library, engines, generation))
    assert stub.calls("cuGraphLaunch")


@on_stub
def test_onnxruntime_gives_the_models_results(library, onnx_file):
    check_results(open_onnxruntime(library, onnx_file))


@on_stub
def test_results_of_infer_belong_to_the_caller(library, onnx_file):
    with open_onnxruntime(library, onnx_file) as backend:
        results = backend.infer(frames_of(2))
        for seed in range(4):
            backend.infer(frames_of(2, seed + 1))
    assert all(map(np.array_equal, results, expected(frames_of(2))))


@pytest.mark.parametrize("check", CHECKS)
@on_stub(environment=AMPERE)
def test_batches_in_flight(library, engines, onnx_file, check):
    batches = [frames_of(1 + seed % 3, seed) for seed in range(12)]
    results = list(map(expected, batches))
    for backend in (
        open_tensorrt(library, engines, GENERATIONS[0]),
        open_onnxruntime(library, onnx_file),
    ):
        with backend:
            CHECKS[check](backend, batches, results)


@on_stub(environment={"CUDA_STUB_SM": "61"})
def test_an_engine_for_another_gpu_is_refused(library, engines):
    with pytest.raises(EngineMismatch, match=r"8\.6.*6\.1") as caught:
        open_tensorrt(library, engines, "10.3.0")
    assert untyped(caught.value) is None


@on_stub
def test_a_fall_back_to_the_cpu_is_refused(library, onnx_file):
    with pytest.raises(BackendUnavailable, match="fell back to the CPU") as caught:
        open_onnxruntime(library, onnx_file, provider="CPUExecutionProvider")
    assert untyped(caught.value) is None


@pytest.mark.parametrize(
    "name", ["cuMemHostRegister", "cuMemAlloc", "cuEventCreate", "cuStreamCreateWithPriority"]
)
@on_stub(log=".", environment=AMPERE)
def test_a_failure_while_opening_frees_everything(library, engines, onnx_file, name):
    for opener, argument in ((open_tensorrt, engines), (open_onnxruntime, onnx_file)):
        for nth in (1, 3):
            extra = ("10.3.0",) if opener is open_tensorrt else ()
            before = stub.left()
            stub.fail(name, nth, 2 if "Mem" in name else 999, times=2)
            with pytest.raises(EsnetError) as caught:
                opener(library, argument, *extra)
            stub.fail_never()
            assert untyped(caught.value) is None
            del caught
            assert stub.left() == before
