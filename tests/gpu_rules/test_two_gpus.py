"""Two GPUs in one process: backends, engines built elsewhere, and the GPU that builds."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.engine.trt_builder import BuildOptions, build_plan
from runtime.artefact.card import BatchRange
from runtime.artefact.engine_file import read_record, write_engine
from runtime.errors import EngineMismatch, InvalidInput
from runtime.tensorrt_api import load_tensorrt
from tests.cuda_stub import stub
from tests.fake_trt import GENERATIONS
from tests.gpu_rules.fakes import (
    AMPERE,
    RTX,
    frames_of,
    gives_its_results,
    open_engine,
    open_onnx,
    use_onnxruntime,
    use_tensorrt,
)
from tests.gpu_rules.rules import on_stub, untyped

TWO = {**AMPERE, "CUDA_STUB_DEVICES": "2"}
NEWEST = GENERATIONS[-1]


def used_bytes(backend: Any) -> int:
    """Get the memory in use on the GPU of a backend."""
    with backend._cuda.current():
        free, total = backend._cuda.memory_bytes()
    return int(total - free)


@on_stub(environment=TWO)
def test_each_gpu_gives_its_own_results(library, engines, onnx_file):
    use_tensorrt(NEWEST)
    use_onnxruntime()
    openers = ((open_engine, f"{engines}/{NEWEST}.engine"), (open_onnx, onnx_file))
    for opener, path in openers:
        with opener(library, path, index=1) as second:
            used = used_bytes(second)
            with opener(library, path, index=0) as first:
                assert used_bytes(second) == used, "memory of the first GPU lies on the second"
                wrong = []

                def work(backend: Any, seed: int, wrong: list[bool] = wrong) -> None:
                    for number in range(12):
                        frames = frames_of(1 + number % 3, 100 * seed + number)
                        wrong.append(not gives_its_results(backend, frames))

                pairs = ((first, 0), (second, 1), (first, 2), (second, 3))
                threads = [threading.Thread(target=work, args=pair) for pair in pairs]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert wrong == [False] * 48
            assert gives_its_results(second, frames_of(2)), "closing the first GPU broke the second"
            assert ("cuda:0" in first.device, "cuda:1" in second.device) == (True, True)


@on_stub(environment=TWO, once=True)
def test_an_engine_for_another_compute_capability_is_refused_on_the_second_gpu(library, engines):
    use_tensorrt("8.6.1")
    with pytest.raises(EngineMismatch, match=r"for compute capability 6\.1, .*RTX 3090 has 8\.6"):
        open_engine(library, f"{engines}/gtx10xx.engine", index=1)


@on_stub(environment=TWO, once=True)
def test_an_engine_of_another_model_of_the_same_capability_loads_with_a_note(
    library, engines, tmp_path
):
    use_tensorrt(NEWEST)
    source, path = Path(engines) / f"{NEWEST}.engine", Path(tmp_path) / "other.engine"
    record = read_record(source)
    target = {**record.target, "gpu": "NVIDIA GeForce RTX 3060"}
    write_engine(path, source.read_bytes(), replace(record, target=target))
    with open_engine(library, path, index=1) as backend:
        (note,) = backend.notes
        assert gives_its_results(backend, frames_of(1))
    assert "was built on NVIDIA GeForce RTX 3060" in note
    assert "this is NVIDIA GeForce RTX 3090" in note


def device_of_the_build(module: Any) -> list[int]:
    """Note the current GPU of each build."""
    devices, build = [], module.Builder.build_serialized_network

    def noted(builder: Any, network: Any, config: Any) -> Any:
        device = ctypes.c_int()
        assert stub.driver().cuCtxGetDevice(ctypes.byref(device)) == 0
        devices.append(device.value)
        return build(builder, network, config)

    module.Builder.build_serialized_network = noted
    return devices


@pytest.mark.parametrize("generation", GENERATIONS)
@on_stub(environment=TWO, once=True)
def test_tensorrt_builds_on_the_gpu_that_is_asked_for(library, onnx_file, generation):
    devices = device_of_the_build(use_tensorrt(generation))
    model, batch = Path(onnx_file).read_bytes(), BatchRange(1, 1, 8)
    for device in (1, "cuda:0"):
        options = BuildOptions(precision="fp32", batch=batch, device=device)
        assert build_plan(load_tensorrt("tensorrt"), model, options).plan
    assert devices == [1, 0]
    with pytest.raises(InvalidInput, match="no GPU cuda:2") as caught:
        build_plan(load_tensorrt("tensorrt"), model, replace(options, device=2))
    assert untyped(caught.value) is None


@on_stub(environment=TWO, once=True, log="cuCtxGetCurrent.*NOT_INITIALIZED")
def test_tensorrt_rtx_builds_without_a_gpu(library, onnx_file):
    use_tensorrt(RTX, name="tensorrt_rtx")
    options = BuildOptions(precision="fp32", batch=BatchRange(1, 1, 8), device=1)
    assert build_plan(load_tensorrt("tensorrt-rtx"), Path(onnx_file).read_bytes(), options).plan
    assert stub.calls("cuDevicePrimaryCtxRetain") == 0
