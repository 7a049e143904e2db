"""The CUDA libraries: our calls exist in the real modules, and errors are reported with hints."""

import ctypes
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import runtime.cuda
from runtime.cuda.device import open_device
from runtime.cuda.resources import cuda_error, error_from_text
from runtime.errors import BackendUnavailable, CudaError, InvalidInput

FOLDER = Path(runtime.cuda.__file__).parent


def has_driver() -> bool:
    try:
        open_device("cuda-bindings").close()
    except BackendUnavailable:
        return False
    return True


def test_every_name_we_touch_is_in_the_real_bindings():
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    text = (FOLDER / "bindings_device.py").read_text()
    names = set(re.findall(r"\bdriver\.(\w+)", text)) - {"py"}
    members = re.findall(r"\b(CU_\w+)\b", text)
    assert len(names) > 20
    assert [name for name in names if not hasattr(driver, name)] == []
    enums = [getattr(driver, name) for name in names if name.startswith("CU")]
    assert [m for m in members if not any(hasattr(enum, m) for enum in enums)] == []


def test_without_a_driver_the_real_bindings_say_so():
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    if has_driver():
        pytest.skip("this machine has a driver")
    with pytest.raises(
        BackendUnavailable, match=r"no GPU can be used: .*cuda-bindings: .*driver"
    ) as caught:
        open_device("cuda-bindings")
    assert "esnet-doctor" in caught.value.hint


def test_an_unknown_library_is_refused():
    with pytest.raises(InvalidInput, match="unknown CUDA library 'cupy'"):
        open_device("cupy")


def test_without_any_library_each_is_named(no_cuda_libraries):
    with pytest.raises(BackendUnavailable, match=r"pycuda: .*pycuda.*; cuda-bindings: .*cuda") as e:
        open_device()
    assert "pip install 'esnet-deploy[pycuda]'" in e.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", "smaller batch"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", "restart it"),
        ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "restart it"),
        ("CUDA_ERROR_MISALIGNED_ADDRESS", "restart it"),
        ("CUDA_ERROR_INVALID_PC", "restart it"),
        ("CUDA_ERROR_DEVICE_UNAVAILABLE", "another process"),
        ("CUDA_ERROR_NOT_PERMITTED", "esnet-doctor"),
        ("CUDA_ERROR_INVALID_VALUE", "esnet-doctor"),
    ],
)
def test_an_error_says_what_to_do(name, hint):
    error = cuda_error("cuMemAlloc", name, "words")
    assert isinstance(error, CudaError)
    assert str(error) == f"cuMemAlloc failed: {name}, words"
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CUDA-capable device(s) is/are busy or unavailable", "CUDA_ERROR_DEVICE_UNAVAILABLE"),
        ("misaligned address", "CUDA_ERROR_MISALIGNED_ADDRESS"),
        ("an illegal instruction was encountered", "CUDA_ERROR_ILLEGAL_INSTRUCTION"),
        ("device-side assert triggered", "CUDA_ERROR_ASSERT"),
    ],
)
def test_an_error_is_known_by_its_text(text, name):
    assert str(error_from_text("cuCtxSynchronize", text)).startswith(
        f"cuCtxSynchronize failed: {name}"
    )


class FakeDriver(types.ModuleType):
    """``cuda.bindings.driver`` of a machine with one GPU: memory is numpy's, work runs at once."""

    def __init__(self):
        super().__init__("cuda.bindings.driver")
        self.memory, self.next, self.live, self.fail = {}, 0x1000, set(), {}
        self.host, self.calls = {}, []
        for name in ("CU_STREAM_NON_BLOCKING", "CU_EVENT_DEFAULT", "CU_EVENT_DISABLE_TIMING"):
            setattr(self, name, 1)
        enum = types.SimpleNamespace
        self.CUstream_flags = enum(CU_STREAM_NON_BLOCKING=1)
        self.CUevent_flags = enum(CU_EVENT_DEFAULT=0, CU_EVENT_DISABLE_TIMING=2)
        self.CUstreamCaptureMode = enum(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
        self.CUdevice_attribute = enum(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        )

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append(name)
            if name in self.fail:
                return (self.fail[name], *[None] * 2)[: 1 if "Free" in name else 2]
            return getattr(type(self), f"_{name}", type(self)._made)(self, *arguments)

        call.__name__ = name
        return call

    def _made(self, *arguments):
        self.next += 16
        self.live.add(self.next)
        return 0, self.next

    def _cuInit(self, flags):
        return (0,)

    def _cuDeviceGetCount(self):
        return 0, 1

    def _cuDeviceGet(self, index):
        return 0, index

    def _cuDeviceGetName(self, length, device):
        return 0, b"NVIDIA Fake\0\0"

    def _cuDeviceGetPCIBusId(self, length, device):
        return 0, b"0000:3B:00.0\0\0"

    def _cuDeviceGetAttribute(self, which, device):
        return 0, {"major": 8, "minor": 6}[which]

    def _cuMemGetInfo(self):
        return 0, 1_000_000, 8_000_000

    def _cuMemHostRegister(self, address, size, flags):
        self.host[address] = np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)
        self.live.add(address)
        return (0,)

    def _cuMemAlloc(self, size):
        status, address = self._made()
        self.memory[address] = np.zeros(size, np.uint8)
        return status, address

    def _cuMemcpyHtoDAsync(self, target, source, size, stream):
        self.memory[target][:size] = self.host[source][:size]
        return (0,)

    def _cuMemcpyDtoHAsync(self, target, source, size, stream):
        self.host[target][:size] = self.memory[source][:size]
        return (0,)

    def _gone(self, item):
        self.live.remove(item)
        return (0,)

    _cuMemFree = _cuMemHostUnregister = _cuStreamDestroy = _cuEventDestroy = _gone
    _cuGraphDestroy = _cuGraphExecDestroy = _gone

    def _done(self, *arguments):
        return (0,)

    _cuCtxPushCurrent = _cuStreamSynchronize = _cuEventSynchronize = _cuEventRecord = _done
    _cuStreamWaitEvent = _cuStreamBeginCapture = _cuGraphLaunch = _done

    def _cuCtxPopCurrent(self):
        return 0, 1

    def _cuDevicePrimaryCtxRetain(self, device):
        self.live.add("context")
        return 0, "context"

    def _cuDevicePrimaryCtxRelease(self, device):
        return self._gone("context")

    def _cuEventElapsedTime(self, start, end):
        return 0, 1.5

    def _cuGetErrorName(self, status):
        return 0, {2: b"CUDA_ERROR_OUT_OF_MEMORY", 100: b"CUDA_ERROR_NO_DEVICE"}[int(status)]

    def _cuGetErrorString(self, status):
        return 0, b"the driver's words"


@pytest.fixture
def driver(monkeypatch):
    """A fake driver under the real device."""
    fake = FakeDriver()
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    package.bindings, bindings.driver, package.__path__, bindings.__path__ = bindings, fake, [], []
    for name, module in {
        "cuda": package,
        "cuda.bindings": bindings,
        "cuda.bindings.driver": fake,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "runtime.cuda.bindings_device", raising=False)
    yield fake
    sys.modules.pop("runtime.cuda.bindings_device", None)


def test_bytes_go_there_and_back(driver):
    device = open_device("cuda-bindings")
    assert (device.name, device.sm, device.library) == ("NVIDIA Fake", (8, 6), "cuda-bindings")
    assert device.pci_bus_id == "0000:3b:00.0"
    with device.current():
        there, back, memory = (
            device.pinned_buffer(64),
            device.pinned_buffer(64),
            device.device_buffer(64),
        )
        stream = device.new_stream()
        there.array[:] = np.arange(64)
        device.copy_to_device(memory, there, 64, stream)
        device.copy_to_host(back, memory, 64, stream)
        stream.synchronize()
        np.testing.assert_array_equal(back.array, np.arange(64))
    device.close()


def test_close_frees_all_that_is_left_and_may_be_called_twice(driver):
    device = open_device("cuda-bindings")
    with device.current():
        device.pinned_buffer(8)
        kept = device.device_buffer(8)
        device.new_event(timing=True)
        device.capture(device.new_stream(), lambda: None)
        kept.free()
        kept.free()
    device.close()
    device.close()
    assert driver.live == set()


def test_resources_are_freed_in_reverse_order_even_after_an_error(driver):
    device = open_device("cuda-bindings")
    with device.current():
        device.new_stream()
        device.device_buffer(8)
        device.new_event()
        device.pinned_buffer(8)
    driver.fail["cuMemFree"] = 2
    driver.calls.clear()
    with pytest.raises(CudaError, match="cuMemFree failed"):
        device.close()
    freed = [n for n in driver.calls if "Free" in n or "Destroy" in n or "Unregister" in n]
    assert freed == ["cuMemHostUnregister", "cuEventDestroy", "cuMemFree", "cuStreamDestroy"]
    assert "context" not in driver.live
    device.close()


def test_out_of_memory_reports_requested_and_free_memory(driver):
    device = open_device("cuda-bindings")
    driver.fail["cuMemAlloc"] = 2
    with (
        device.current(),
        pytest.raises(CudaError, match=r"full: 5\.0 MB requested, 1\.0 of 8 MB free"),
    ):
        device.device_buffer(5_000_000)


def test_work_that_fails_while_captured_ends_the_capture(driver):
    device = open_device("cuda-bindings")

    def work():
        raise CudaError("refused")

    with device.current(), pytest.raises(CudaError, match="refused"):
        device.capture(device.new_stream(), work)
    assert driver.calls[-3:] == ["cuStreamEndCapture", "cuGraphDestroy", "cuCtxPopCurrent"]
    device.close()
    assert driver.live == set()


def test_a_machine_without_a_gpu_is_told(driver):
    driver.fail["cuInit"] = 100
    with pytest.raises(BackendUnavailable, match="cuInit: CUDA_ERROR_NO_DEVICE"):
        open_device("cuda-bindings")
