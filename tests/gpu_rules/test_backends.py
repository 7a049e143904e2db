"""Both GPU backends on real CUDA libraries: results, batches in flight, and errors; see ``fakes``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime import errors
from runtime.errors import BackendUnavailable, CudaError, EsnetError
from tests.contract import CHECKS
from tests.cuda_stub import stub
from tests.fake_trt import GENERATIONS
from tests.gpu_rules.fakes import (
    AMPERE,
    frames_of,
    gives_its_results,
    open_engine,
    open_onnx,
    use_onnxruntime,
    use_tensorrt,
)
from tests.gpu_rules.rules import expected, on_stub, untyped

NEWEST = GENERATIONS[-1]


def check_results(backend: Any) -> None:
    """Run batches one by one, then in flight, and compare every result."""
    with backend:
        for seed, count in enumerate((1, 3, 8, 3, 3, 3, 1)):
            assert gives_its_results(backend, frames_of(count, seed))
        flying = []
        for seed in range(20):
            if len(flying) == 3:
                ticket, frames = flying.pop(0)
                assert all(map(np.array_equal, backend.collect(ticket), expected(frames)))
            frames = frames_of(1 + seed % 4, seed)
            flying.append((backend.submit(frames), frames))
        for ticket, frames in flying:
            assert all(map(np.array_equal, backend.collect(ticket), expected(frames)))
    assert stub.calls("cuGraphLaunch")


@pytest.mark.parametrize("generation", GENERATIONS)
@on_stub(environment=AMPERE)
def test_tensorrt_gives_the_engines_results(library, engines, generation):
    use_tensorrt(generation)
    check_results(open_engine(library, f"{engines}/{generation}.engine"))


@on_stub
def test_onnxruntime_gives_the_models_results(library, onnx_file):
    use_onnxruntime()
    check_results(open_onnx(library, onnx_file))


@pytest.mark.parametrize("check", CHECKS)
@on_stub(environment=AMPERE)
def test_batches_in_flight(library, engines, onnx_file, check):
    use_tensorrt(NEWEST)
    use_onnxruntime()
    batches = [frames_of(1 + seed % 3, seed) for seed in range(12)]
    results = list(map(expected, batches))
    for backend in (
        open_engine(library, f"{engines}/{NEWEST}.engine"),
        open_onnx(library, onnx_file),
    ):
        with backend:
            CHECKS[check](backend, batches, results)


@pytest.mark.parametrize(
    "name", ["cuMemHostRegister", "cuMemAlloc", "cuEventCreate", "cuStreamCreateWithPriority"]
)
@on_stub(log=".", environment=AMPERE)
def test_a_failure_while_opening_frees_everything(library, engines, onnx_file, name):
    use_tensorrt(NEWEST)
    use_onnxruntime()
    for opener, path in ((open_engine, f"{engines}/{NEWEST}.engine"), (open_onnx, onnx_file)):
        for nth in (1, 3):
            before = stub.left()
            stub.fail(name, nth, 2 if "Mem" in name else 999, times=2)
            with pytest.raises(EsnetError) as caught:
                opener(library, path)
            stub.fail_never()
            assert untyped(caught.value) is None
            del caught
            assert stub.left() == before


@on_stub
def test_a_fall_back_to_the_cpu_is_refused(library, onnx_file):
    use_onnxruntime(provider="CPUExecutionProvider")
    with pytest.raises(BackendUnavailable, match="fell back to the CPU") as caught:
        open_onnx(library, onnx_file)
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.hint


@pytest.mark.parametrize(
    ("problem", "kind", "hint"),
    [
        pytest.param(
            "Failed to allocate memory for requested buffer of size 9",
            *("CudaError", "smaller batch"),
            id="memory",
        ),
        pytest.param(
            "CUDA failure 700: an illegal memory access was encountered",
            *("CudaError", "restart it"),
            id="address",
        ),
        pytest.param(
            "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED",
            *("CudaError", "esnet-doctor"),
            id="cudnn",
        ),
        pytest.param(
            "Load model from small.onnx failed: Protobuf parsing failed",
            *("ModelFileError", "export"),
            id="file",
        ),
    ],
)
@on_stub(once=True)
def test_an_error_of_onnxruntime_while_opening_says_whose_it_is(
    library, onnx_file, problem, kind, hint
):
    use_onnxruntime().opening_problem = problem
    with pytest.raises(getattr(errors, kind), match=problem.partition(":")[0]) as caught:
        open_onnx(library, onnx_file)
    assert hint in caught.value.hint


@on_stub(once=True)
def test_an_error_of_onnxruntime_in_a_run_has_a_hint(library, onnx_file):
    module = use_onnxruntime()
    with open_onnx(library, onnx_file) as backend:
        module.run_problem = "CUDA failure 2: out of memory ; GPU=0"
        with pytest.raises(CudaError, match="a batch of 3 failed: CUDA_ERROR_OUT_OF") as caught:
            backend.infer(frames_of(3))
    assert "free GPU memory" in caught.value.hint


@pytest.mark.parametrize(("precision", "use_tf32"), [("fp32", "0"), ("fp16", "1")])
@on_stub(once=True, environment={"CUDA_STUB_DEVICES": "2"})
def test_onnxruntime_computes_fp32_without_tf32_on_the_given_gpu(
    library, onnx_file, half_file, precision, use_tf32
):
    use_onnxruntime()
    path = {"fp32": onnx_file, "fp16": half_file}[precision]
    with open_onnx(library, path, index=1) as backend:
        assert backend.precision == precision
        options = backend._session.options
    assert (options["use_tf32"], options["device_id"]) == (use_tf32, "1")
