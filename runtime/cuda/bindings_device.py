"""CUDA through ``cuda-bindings``: NVIDIA's own wheels, no compiler needed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from cuda.bindings import driver

from runtime.cuda.device import CudaDevice
from runtime.cuda.resources import Created, DeviceMemory, PinnedMemory, cuda_error
from runtime.errors import BackendUnavailable
from runtime.machine.machine import normalise_bus_id


class BindingsDevice(CudaDevice):
    """A GPU opened with ``cuda-bindings``."""

    library = "cuda-bindings"

    def __init__(self, index: int) -> None:
        super().__init__(index, _count_gpus())
        device = self._device = _call(driver.cuDeviceGet, index)
        self.name = _decode(_call(driver.cuDeviceGetName, 128, device))
        self.pci_bus_id = normalise_bus_id(_decode(_call(driver.cuDeviceGetPCIBusId, 32, device)))
        attribute = driver.CUdevice_attribute
        major = attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        minor = attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        value_of = partial(_call, driver.cuDeviceGetAttribute)
        self.sm = value_of(major, device), value_of(minor, device)
        self._context = _call(driver.cuDevicePrimaryCtxRetain, device)

    def _copy_in(self, to: DeviceMemory, source: PinnedMemory, size: int, stream: Any) -> None:
        _call(driver.cuMemcpyHtoDAsync, to.address, source.raw, size, stream)

    def _copy_out(self, to: PinnedMemory, source: DeviceMemory, size: int, stream: Any) -> None:
        _call(driver.cuMemcpyDtoHAsync, to.raw, source.address, size, stream)

    def _memory_info(self) -> Any:
        return _call(driver.cuMemGetInfo)

    def _push_context(self) -> None:
        _call(driver.cuCtxPushCurrent, self._context)

    def _pop_context(self) -> None:
        _call(driver.cuCtxPopCurrent)

    def _release_context(self) -> None:
        _call(driver.cuDevicePrimaryCtxRelease, self._device)

    def _create_stream(self) -> Created:
        stream = _call(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return stream, partial(_call, driver.cuStreamDestroy)

    def _stream_handle(self, stream: Any) -> int:
        return int(stream)

    def _wait(self, stream: Any, event: Any) -> None:
        _call(driver.cuStreamWaitEvent, stream, event, 0)

    def _synchronize_stream(self, stream: Any) -> None:
        _call(driver.cuStreamSynchronize, stream)

    def _create_event(self, timing: bool, blocking: bool) -> Created:
        kinds = driver.CUevent_flags
        flags = 0 if timing else int(kinds.CU_EVENT_DISABLE_TIMING)
        flags |= int(kinds.CU_EVENT_BLOCKING_SYNC) if blocking else 0
        return _call(driver.cuEventCreate, flags), partial(_call, driver.cuEventDestroy)

    def _record(self, event: Any, stream: Any) -> None:
        _call(driver.cuEventRecord, event, stream)

    def _synchronize_event(self, event: Any) -> None:
        _call(driver.cuEventSynchronize, event)

    def _elapsed_ms(self, start: Any, end: Any) -> float:
        return float(_call(driver.cuEventElapsedTime, start, end))

    def _register(self, memory: np.ndarray) -> Created:
        address = memory.ctypes.data
        _call(driver.cuMemHostRegister, address, memory.nbytes, 0)
        return address, partial(_call, driver.cuMemHostUnregister)

    def _allocate(self, num_bytes: int) -> Created:
        return _call(driver.cuMemAlloc, num_bytes), partial(_call, driver.cuMemFree)

    def _begin_capture(self, stream: Any) -> None:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(driver.cuStreamBeginCapture, stream, mode)

    def _end_capture(self, stream: Any) -> Created:
        return _call(driver.cuStreamEndCapture, stream), partial(_call, driver.cuGraphDestroy)

    def _instantiate(self, graph: Any) -> Created:
        executable = _call(driver.cuGraphInstantiate, graph, 0)
        return executable, partial(_call, driver.cuGraphExecDestroy)

    def _launch(self, executable: Any, stream: Any) -> None:
        _call(driver.cuGraphLaunch, executable, stream)


def _count_gpus() -> Any:
    """Start the driver and count its GPUs; raise ``BackendUnavailable`` if there is none."""
    try:
        status = driver.cuInit(0)[0]
        if int(status):
            raise BackendUnavailable(f"cuInit: {_describe(status)[0]}: no NVIDIA driver or no GPU")
        return _call(driver.cuDeviceGetCount)
    except RuntimeError as error:  # cuda-bindings finds no libcuda
        raise BackendUnavailable(f"no NVIDIA driver: {str(error).splitlines()[0]}") from error


def _call(function: Any, *arguments: Any) -> Any:
    """Call the driver and get the value of ``(status, value, ...)``, or raise what the status stands for."""
    status, *values = function(*arguments)
    if int(status):
        raise cuda_error(function.__name__, *_describe(status))
    return values[0] if len(values) == 1 else tuple(values) or None


def _describe(status: Any) -> tuple[str, str]:
    """Get the driver's name and description of a status."""
    texts = []
    for function in (driver.cuGetErrorName, driver.cuGetErrorString):
        failed, text = function(status)
        texts.append(str(int(status)) if int(failed) else _decode(text))
    return texts[0], texts[1]


def _decode(text: bytes) -> str:
    return bytes(text).partition(b"\0")[0].decode()
