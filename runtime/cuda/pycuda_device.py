"""CUDA through PyCUDA.

CUDA graphs, which PyCUDA lacks, and page-locking, which crashes in PyCUDA 2026.1, call the driver by ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import numpy as np
import pycuda.driver as cuda

from runtime.cuda.device import CudaDevice
from runtime.cuda.resources import Created, DeviceMemory, PinnedMemory, cuda_error, error_from_text
from runtime.errors import BackendUnavailable, CudaError
from runtime.machine.machine import normalise_bus_id

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, cuda.h
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PyCudaDevice(CudaDevice):
    """A GPU opened with PyCUDA."""

    library = "pycuda"

    def __init__(self, index: int) -> None:
        super().__init__(index, _count_gpus())
        device = _call("cuDeviceGet", cuda.Device, index)
        self.name = _call("cuDeviceGetName", device.name)
        self.sm = tuple(_call("cuDeviceComputeCapability", device.compute_capability))
        self.pci_bus_id = normalise_bus_id(_call("cuDeviceGetPCIBusId", device.pci_bus_id))
        # TensorRT and torch use the primary context; a new context would share nothing with them.
        self._context = _call("cuDevicePrimaryCtxRetain", device.retain_primary_context)

    def _copy_in(self, to: DeviceMemory, source: PinnedMemory, size: int, stream: Any) -> None:
        array = source.array[:size]
        _call("cuMemcpyHtoDAsync", cuda.memcpy_htod_async, to.address, array, stream)

    def _copy_out(self, to: PinnedMemory, source: DeviceMemory, size: int, stream: Any) -> None:
        array = to.array[:size]
        _call("cuMemcpyDtoHAsync", cuda.memcpy_dtoh_async, array, source.address, stream)

    def _memory_info(self) -> Any:
        return _call("cuMemGetInfo", cuda.mem_get_info)

    def _push_context(self) -> None:
        _call("cuCtxPushCurrent", self._context.push)

    def _pop_context(self) -> None:
        _call("cuCtxPopCurrent", self._context.pop)

    def _release_context(self) -> None:
        """Release the context, and leave none current.

        PyCUDA releases only a context of the calling thread, or the one that it believes is current, and it
        leaves the destroyed context on the driver's stack. So the driver's stack is popped in between.
        """
        with ExitStack() as steps:
            steps.callback(_call, "cuDevicePrimaryCtxRelease", self._context.detach)
            pop = partial(_call_driver, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
            try:
                self._push_context()
            except CudaError:
                self._push_context()  # otherwise detach() pushes the context, and leaves it there
                pop()
                raise
            pop()

    def _create_stream(self) -> Created:
        return _call("cuStreamCreate", cuda.Stream, _NON_BLOCKING), _drop_object

    def _stream_handle(self, stream: Any) -> int:
        return int(stream.handle)

    def _wait(self, stream: Any, event: Any) -> None:
        _call("cuStreamWaitEvent", stream.wait_for_event, event)

    def _synchronize_stream(self, stream: Any) -> None:
        _call("cuStreamSynchronize", stream.synchronize)

    def _create_event(self, timing: bool, blocking: bool) -> Created:
        kinds = cuda.event_flags
        flags = 0 if timing else int(kinds.DISABLE_TIMING)
        flags |= int(kinds.BLOCKING_SYNC) if blocking else 0
        return _call("cuEventCreate", cuda.Event, flags), _drop_object

    def _record(self, event: Any, stream: Any) -> None:
        _call("cuEventRecord", event.record, stream)

    def _synchronize_event(self, event: Any) -> None:
        _call("cuEventSynchronize", event.synchronize)

    def _elapsed_ms(self, start: Any, end: Any) -> float:
        return float(_call("cuEventElapsedTime", end.time_since, start))

    def _register(self, memory: np.ndarray) -> Created:
        address = ctypes.c_void_p(memory.ctypes.data)
        size = ctypes.c_size_t(memory.nbytes)
        _call_driver("cuMemHostRegister_v2", address, size, ctypes.c_uint(0))
        return address, partial(_call_driver, "cuMemHostUnregister")

    def _allocate(self, num_bytes: int) -> Created:
        memory = _call("cuMemAlloc", cuda.mem_alloc, num_bytes)
        return memory, lambda raw: _call("cuMemFree", raw.free)

    def _begin_capture(self, stream: Any) -> None:
        _call_driver("cuStreamBeginCapture_v2", ctypes.c_void_p(int(stream.handle)), _THREAD_LOCAL)

    def _end_capture(self, stream: Any) -> Created:
        graph = ctypes.c_void_p()
        handle = ctypes.c_void_p(int(stream.handle))
        _call_driver("cuStreamEndCapture", handle, ctypes.byref(graph))
        return graph, partial(_call_driver, "cuGraphDestroy")

    def _instantiate(self, graph: Any) -> Created:
        executable = ctypes.c_void_p()
        flags = ctypes.c_ulonglong(0)
        _call_driver("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
        return executable, partial(_call_driver, "cuGraphExecDestroy")

    def _launch(self, executable: Any, stream: Any) -> None:
        _call_driver("cuGraphLaunch", executable, ctypes.c_void_p(int(stream.handle)))


def _drop_object(stream_or_event: Any) -> None:
    """Do nothing: PyCUDA destroys streams and events with their Python objects."""


def _count_gpus() -> Any:
    """Start the driver and count its GPUs; raise ``BackendUnavailable`` if there is none."""
    try:
        cuda.init()
        return cuda.Device.count()
    except Exception as error:  # pycuda._driver.Error derives from no other exception type
        raise BackendUnavailable(f"no NVIDIA driver or no GPU: {error}") from error


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call PyCUDA; ``name`` is the driver function behind it, for error messages."""
    try:
        return function(*arguments)
    except cuda.Error as error:
        kind = "out of memory: " if isinstance(error, cuda.MemoryError) else ""
        raise error_from_text(name, f"{kind}{error}") from error


@cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call_driver(name: str, *arguments: Any) -> None:
    """Call libcuda directly."""
    driver = _libcuda()
    status = getattr(driver, name)(*arguments)
    if status:
        texts = ctypes.c_char_p(), ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(texts[0]))
        driver.cuGetErrorString(status, ctypes.byref(texts[1]))
        words = [(text.value or b"unknown").decode() for text in texts]
        raise cuda_error(name, *words)
