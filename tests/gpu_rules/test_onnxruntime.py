"""The real CUDA provider of onnxruntime-gpu over the stub; its kernels compute nothing."""

from __future__ import annotations

import os
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from runtime.artefact.card import ModelCard
from runtime.artefact.tensors import TensorSpec
from runtime.backends import onnxruntime_cuda
from runtime.cuda.device import CudaDevice, open_device
from runtime.cuda.ring import SlotLayout, SlotRing
from runtime.errors import CudaError
from tests.cuda_stub import stub
from tests.gpu_rules.rules import in_environments, on_stub, untyped, wheels_layout

ONLY = ("onnxruntime-gpu",)
WAITS = (
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuEventSynchronize",
    "cuStreamQuery",
    "cuMemcpyHtoD",
)
ALLOCATIONS = (
    "cuMemAlloc",
    "cuMemHostAlloc",
    "cuMemFree",
    "cuMemFreeHost",
    "cuMemAllocFromPoolAsync",
)
CUDART = {"contexts": 1}
"""What stays after closing: cudart keeps the primary context until the process ends."""


@pytest.fixture(scope="session")
def model(make_artefact: Callable[..., Path]) -> Path:
    """A small artefact."""
    return make_artefact()


def frames(count: int) -> np.ndarray:
    return np.zeros((count, 64, 128, 3), np.uint8)


def open_it(library: str, path: str, **settings: Any) -> Any:
    """Open the backend on a device."""
    card = ModelCard.from_file(Path(path))
    settings.setdefault("device", None)
    device = settings.pop("device") or open_device(library)
    return onnxruntime_cuda.OnnxRuntimeCudaBackend(Path(path), card, device=device, **settings)


def counts(names: tuple[str, ...]) -> dict[str, int]:
    return {name: stub.calls(name) for name in names}


def changes(before: dict[str, int]) -> dict[str, int]:
    return {k: stub.calls(k) - v for k, v in before.items() if stub.calls(k) != v}


@contextmanager
def streams_of(device: CudaDevice) -> Iterator[list[int]]:
    """Collect the handles of the streams that are made on a device."""
    handles: list[int] = []
    new_stream = device.new_stream

    def noted() -> Any:
        stream = new_stream()
        handles.append(int(stream.handle))
        return stream

    device.new_stream = noted  # type: ignore[method-assign]
    yield handles


@on_stub(only=ONLY, left=True, environment={"CUDA_STUB_SEED": "0"})
def test_all_work_is_on_our_streams(library, model):
    onnxruntime_cuda.OnnxRuntimeCudaBackend._use_graphs = False  # 94 kernels instead of 1 graph
    device = open_device(library)
    with streams_of(device) as handles, open_it(library, model, device=device) as backend:
        backend.infer(frames(2))
        with device.current():
            before = [stub.queued(handle) for handle in (*handles, 0)]
            backend.submit(frames(2))
            ours = [stub.queued(handle) for handle in (*handles, 0)]
        added = [after - earlier for after, earlier in zip(ours, before, strict=True)]
        assert added[-1] == 0, "work on the legacy stream"
        assert stub.pending() == sum(added), "work on a stream of ONNX Runtime's own"
        assert max(added) > 50
        backend.collect()
    assert stub.left() == CUDART


@on_stub(only=ONLY, left=True)
def test_a_run_does_not_wait(library, model):
    with open_it(library, model) as backend:
        for count in (1, 2, 8):
            backend.infer(frames(count))
        before = counts(WAITS)
        tickets = [backend.submit(frames(count)) for count in (1, 2, 8)]
        assert changes(before) == {}
        for ticket in tickets:
            backend.collect(ticket)
    assert stub.left() == CUDART


@on_stub(only=ONLY, left=True)
def test_nothing_is_allocated_from_the_second_run_of_a_size(library, model):
    with open_it(library, model) as backend:
        for count in (1, 8, 2):
            for _ in range(backend.ring.num_slots):
                backend.infer(frames(count))
            before = counts(ALLOCATIONS)
            for _ in range(6):
                backend.infer(frames(count))
            assert changes(before) == {}
    assert stub.left() == CUDART


@on_stub(only=ONLY, left=True)
def test_it_may_be_used_and_closed_in_another_thread(library, model):
    backend = open_it(library, model)
    shapes = []

    def work() -> None:
        shapes.append(backend.infer(frames(3))[0].shape)
        backend.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert shapes == [(3, 64, 128)]
    assert stub.current() is None
    assert stub.left() == CUDART


@on_stub(only=ONLY, left=True)
def test_opened_and_closed_many_times(library, model):
    for _ in range(5):
        with open_it(library, model) as backend:
            backend.infer(frames(1))
        assert stub.left() == CUDART


def error_of(function: Callable[[], object]) -> BaseException:
    """Get the error that a call must raise, without the objects that its traceback keeps alive."""
    try:
        function()
    except Exception as error:
        cause: BaseException | None = error
        while cause:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        return error
    raise AssertionError("no error")


@on_stub(only=ONLY, left=True, log=".", environment={"CUDA_STUB_MEM_MB": "4"})
def test_out_of_memory_while_opening(library, model):
    error = error_of(lambda: open_it(library, model))
    assert stub.left() in ({}, CUDART)
    assert isinstance(error, CudaError), f"{type(error).__name__}: {error}"
    assert "memory" in error.hint


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        pytest.param("cuMemAlloc", 2, "memory", id="out-of-memory"),
        pytest.param("cuLaunchKernel", 700, "restart", id="illegal-address"),
        pytest.param("cuLaunchKernel", 719, "restart", id="launch-failed"),
        pytest.param("cuLaunchKernel", 999, "", id="unknown"),
        pytest.param("cuMemsetD8Async", 999, "", id="memset"),
    ],
)
@on_stub(only=ONLY, left=True, log=".", environment={"CUDA_STUB_SEED": "0"})
def test_an_error_in_a_run_is_one_of_ours(library, model, name, code, word):
    backend = open_it(library, model)
    backend.infer(frames(1))
    stub.fail(name, 1, code, times=200)
    error = error_of(lambda: [backend.infer(frames(8)) for _ in range(2)])
    stub.fail_never()
    errors = [error]
    try:
        backend.close()
    except Exception as closing:
        errors.append(closing)
    assert [problem for each in errors if (problem := untyped(each))] == []
    assert isinstance(error, CudaError)
    assert word in error.hint


@pytest.mark.parametrize(
    "name", ["cuMemcpyHtoDAsync", "cuEventRecordWithFlags", "cuStreamWaitEvent"]
)
@on_stub(only=ONLY, left=True, log=".")
def test_an_error_of_the_ring_closes_cleanly(library, model, name):
    backend = open_it(library, model)
    backend.infer(frames(1))
    stub.fail(name)
    error = error_of(lambda: backend.infer(frames(1)))
    stub.fail_never()
    assert untyped(error) is None
    backend.close()
    assert stub.left() == CUDART
    with open_it(library, model) as again:
        again.infer(frames(1))


@on_stub(only=ONLY, left=True, environment={"CUDA_STUB_DEVICES": "2"})
def test_it_runs_on_the_second_gpu(library, model):
    with open_it(library, model, device=open_device(library, index=1)) as backend:
        backend.infer(frames(1))
        backend.infer(frames(2))


@on_stub(only=ONLY, left=True)
def test_fp32_is_not_tf32(library, model):
    opened, real = [], ort.InferenceSession
    ort.InferenceSession = lambda *a, **k: opened.append(real(*a, **k)) or opened[-1]
    with open_it(library, model) as backend:
        assert backend.precision == "fp32"
        options = opened.pop().get_provider_options()["CUDAExecutionProvider"]
    assert options["use_tf32"] == "0"


@on_stub(only=ONLY, left=True)
def test_its_runs_can_be_captured(library, model):
    device, uint8 = open_device(library), np.dtype(np.uint8)
    layout = SlotLayout(
        input=TensorSpec(name="frames", dtype=uint8, shape=(None, 64, 128, 3)),
        outputs=(TensorSpec(name="labels", dtype=uint8, shape=(None, 64, 128)),),
        max_batch=4,
    )
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    with device.current():
        stream = device.new_stream()
        settings = {"user_compute_stream": str(stream.handle), "has_user_compute_stream": "1"}
        session = ort.InferenceSession(model, providers=[("CUDAExecutionProvider", settings)])

        def enqueue(slot: Any, count: int, _: Any) -> None:
            binding = session.io_binding()
            source, (target,) = slot.input_buffer.address, [b.address for b in slot.output_buffers]
            binding.bind_input("frames", "cuda", 0, uint8, (count, 64, 128, 3), source)
            binding.bind_output("labels", "cuda", 0, uint8, (count, 64, 128), target)
            session.run_with_iobinding(binding, options)

        with SlotRing(device, layout, enqueue, compute_stream=stream) as ring:
            for _ in range(2 * ring.num_slots):
                ring.collect(ring.submit(frames(2)))
            before = counts(("cuLaunchKernel", "cuGraphLaunch"))
            ring.collect(ring.submit(frames(2)))
            assert ring.notes == []
            assert changes(before) == {"cuGraphLaunch": 1}
        session = None  # its memory must be freed before the device
    device.close()


@on_stub(only=ONLY, left=True)
def test_the_backend_replays_graphs(library, model):
    with open_it(library, model) as backend:
        for _ in range(9):
            backend.infer(frames(2))
        before = counts(("cuLaunchKernel", "cuGraphLaunch"))
        backend.infer(frames(2))
        assert changes(before) == {"cuGraphLaunch": 1}


@on_stub(only=ONLY, left=True)
def test_every_size_is_captured(library, half_file):
    with open_it(library, half_file, num_slots=1) as backend:
        for count in (1, 3, 8, 2):  # the second run of a larger size allocates
            backend.infer(frames(count))
            before = counts(("cuLaunchKernel", "cuMemAlloc", "cuGraphLaunch"))
            backend.infer(frames(count))
            assert changes(before) == {"cuGraphLaunch": 1}
        assert backend.notes == ()


@on_stub(only=ONLY, left=True, log="CAPTURE")
def test_a_capture_that_allocates_costs_the_graph_of_its_size_alone(library, half_file):
    with open_it(library, half_file, num_slots=1) as backend:
        backend.infer(frames(1))
        (slot,) = backend.ring._slots
        backend._bindings[0, 3] = backend._bind(slot, 3)  # so that only one run warms it up
        for count in (3, 3, 3, 1, 2):
            backend.infer(frames(count))
        (note,) = backend.notes
        assert "batches of 3 run without a CUDA graph" in note
        before = counts(("cuGraphLaunch",))
        for count in (1, 2, 3):
            backend.infer(frames(count))
        assert changes(before) == {"cuGraphLaunch": 2}


OPEN = """
import sys
from runtime.backend import open_backend
import onnxruntime
if "preload" in sys.argv: onnxruntime.preload_dlls()
with open_backend(sys.argv[1], "onnxruntime-cuda") as backend: print("opened on", backend.device)
"""


def open_from_wheels(gpu: Any, model: Path, folder: Path, *arguments: str) -> str:
    """Open a model where the CUDA libraries lie as the wheels install them, and nowhere else."""
    wheels_layout(gpu, folder)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(gpu.stub),
        "PYTHONPATH": os.pathsep.join([str(folder), str(gpu.root)]),
    }
    command = [gpu.python, "-c", OPEN, str(model), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return result.stdout + result.stderr


@in_environments(*ONLY, once=True)
def test_the_wheels_layout_works_with_preload_dlls(gpu, model, tmp_path):
    assert "opened on NVIDIA" in open_from_wheels(gpu, model, tmp_path, "preload")


@in_environments(*ONLY, once=True)
def test_the_wheels_layout_works_by_itself(gpu, model, tmp_path):
    assert "opened on NVIDIA" in open_from_wheels(gpu, model, tmp_path)
