"""CUDA through PyCUDA. Graphs, which it lacks, go to the driver by ctypes on its streams' handles."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pycuda.driver as cuda

from runtime.cuda.owned import Memory, Owned, Owner, cuda_error, explain_out_of_memory
from runtime.errors import BackendUnavailable, CudaError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, cuda.h
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


def open_pycuda(index: int) -> PyCudaDevice:
    """Open a GPU.

    Raises:
        BackendUnavailable: No driver, or no such GPU.
    """
    try:
        cuda.init()
        count = cuda.Device.count()
    except Exception as error:  # pycuda._driver.Error is no builtin's child
        raise BackendUnavailable(f"no NVIDIA driver or no GPU: {error}") from error
    if index >= count:
        raise BackendUnavailable(f"no GPU {index}: the driver sees {count}")
    return PyCudaDevice(index)


class PyCudaDevice:
    """See ``runtime.cuda.device.CudaDevice``."""

    library = "pycuda"

    def __init__(self, index: int) -> None:
        self._owner = Owner()
        device = cuda.Device(index)
        self.name = device.name()
        self.sm = tuple(device.compute_capability())
        # TensorRT and torch live in the primary context; one of our own would share nothing with them.
        self._context: Any = device.retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current for the calling thread."""
        with translate_cuda_errors("cuCtxPushCurrent"):
            self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def new_stream(self) -> PyCudaStream:
        """Make a non-blocking stream."""
        return PyCudaStream(self._owner)

    def new_event(self, *, timing: bool = False) -> PyCudaEvent:
        """Make an event."""
        return PyCudaEvent(self._owner, timing=timing)

    def pinned_buffer(self, num_bytes: int) -> PyCudaPinned:
        """Allocate page-locked host memory."""
        return PyCudaPinned(self._owner, num_bytes)

    def device_buffer(self, num_bytes: int) -> Memory:
        """Allocate device memory."""
        with (
            explain_out_of_memory(num_bytes, self.memory_bytes),
            translate_cuda_errors("cuMemAlloc"),
        ):
            allocation = cuda.mem_alloc(num_bytes)
        return Memory(self._owner, int(allocation), num_bytes, allocation.free)

    def copy_to_device(
        self, target: Memory, source: PyCudaPinned, num_bytes: int, stream: PyCudaStream
    ) -> None:
        """Enqueue a copy."""
        with translate_cuda_errors("cuMemcpyHtoDAsync"):
            cuda.memcpy_htod_async(target.address, source.array[:num_bytes], stream.stream)

    def copy_to_host(
        self, target: PyCudaPinned, source: Memory, num_bytes: int, stream: PyCudaStream
    ) -> None:
        """Enqueue a copy."""
        with translate_cuda_errors("cuMemcpyDtoHAsync"):
            cuda.memcpy_dtoh_async(target.array[:num_bytes], source.address, stream.stream)

    def capture(self, stream: PyCudaStream, work: Callable[[], None]) -> PyCudaGraph:
        """Record what ``work`` enqueues."""
        driver = _libcuda()
        handle = ctypes.c_void_p(stream.handle)
        _check("cuStreamBeginCapture", driver.cuStreamBeginCapture_v2(handle, _THREAD_LOCAL))
        graph = ctypes.c_void_p()
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(
                handle, ctypes.byref(graph)
            )  # the work's own error is the one to tell
            raise
        _check("cuStreamEndCapture", driver.cuStreamEndCapture(handle, ctypes.byref(graph)))
        runnable = ctypes.c_void_p()
        try:
            status = driver.cuGraphInstantiateWithFlags(
                ctypes.byref(runnable), graph, ctypes.c_ulonglong(0)
            )
            _check("cuGraphInstantiateWithFlags", status)
        finally:
            _check("cuGraphDestroy", driver.cuGraphDestroy(graph))
        return PyCudaGraph(self._owner, runnable)

    def memory_bytes(self) -> tuple[int, int]:
        """Get free and total device memory."""
        free, total = cuda.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        """Free what is left and release the primary context."""
        if self._context is None:
            return
        try:
            with self.current():
                self._owner.free_all()
        finally:
            self._context.detach()
            self._context = None


class PyCudaPinned(Owned):
    """Page-locked host memory."""

    def __init__(self, owner: Owner, num_bytes: int) -> None:
        with translate_cuda_errors("cuMemHostAlloc"):
            self.array: np.ndarray = cuda.pagelocked_empty(num_bytes, np.uint8)
        allocation = self.array.base
        super().__init__(owner, lambda: allocation.free())


class PyCudaStream(Owned):
    """A stream; PyCUDA destroys it with its object."""

    def __init__(self, owner: Owner) -> None:
        with translate_cuda_errors("cuStreamCreate"):
            self.stream: Any = cuda.Stream(_NON_BLOCKING)
        self.handle = int(self.stream.handle)
        super().__init__(owner, lambda: setattr(self, "stream", None))

    def wait(self, event: PyCudaEvent) -> None:
        """Let later work wait for an event."""
        with translate_cuda_errors("cuStreamWaitEvent"):
            self.stream.wait_for_event(event.event)

    def synchronize(self) -> None:
        """Wait on the host."""
        with translate_cuda_errors("cuStreamSynchronize"):
            self.stream.synchronize()


class PyCudaEvent(Owned):
    """An event; PyCUDA destroys it with its object."""

    def __init__(self, owner: Owner, *, timing: bool) -> None:
        with translate_cuda_errors("cuEventCreate"):
            self.event: Any = cuda.Event(0 if timing else cuda.event_flags.DISABLE_TIMING)
        super().__init__(owner, lambda: setattr(self, "event", None))

    def record(self, stream: PyCudaStream) -> None:
        """Put the mark."""
        with translate_cuda_errors("cuEventRecord"):
            self.event.record(stream.stream)

    def synchronize(self) -> None:
        """Wait on the host."""
        with translate_cuda_errors("cuEventSynchronize"):
            self.event.synchronize()

    def ms_since(self, start: PyCudaEvent) -> float:
        """Measure device time."""
        with translate_cuda_errors("cuEventElapsedTime"):
            return float(self.event.time_since(start.event))


class PyCudaGraph(Owned):
    """Captured work."""

    def __init__(self, owner: Owner, runnable: ctypes.c_void_p) -> None:
        super().__init__(
            owner, lambda: _check("cuGraphExecDestroy", _libcuda().cuGraphExecDestroy(runnable))
        )
        self._runnable = runnable

    def launch(self, stream: PyCudaStream) -> None:
        """Enqueue it."""
        handle = ctypes.c_void_p(stream.handle)
        _check("cuGraphLaunch", _libcuda().cuGraphLaunch(self._runnable, handle))


@contextmanager
def translate_cuda_errors(call: str) -> Iterator[None]:
    """Turn PyCUDA's errors into ours; they end in the driver's own words."""
    try:
        yield
    except cuda.Error as error:
        text = str(error)
        name = "CUDA_ERROR_OUT_OF_MEMORY" if isinstance(error, cuda.MemoryError) else _name_in(text)
        raise cuda_error(call, name, text) from error


def _name_in(text: str) -> str:
    """Find the driver's status behind PyCUDA's words, "... failed: an illegal memory access"."""
    known = {
        "illegal memory access": "CUDA_ERROR_ILLEGAL_ADDRESS",
        "launch failure": "CUDA_ERROR_LAUNCH_FAILED",
        "out of memory": "CUDA_ERROR_OUT_OF_MEMORY",
        "timed out": "CUDA_ERROR_LAUNCH_TIMEOUT",
        "ECC": "CUDA_ERROR_ECC_UNCORRECTABLE",
    }
    return next((name for words, name in known.items() if words in text), "CUDA_ERROR")


def _libcuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(call: str, status: int) -> None:
    if status:
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        driver = _libcuda()
        driver.cuGetErrorName(status, ctypes.byref(name))
        driver.cuGetErrorString(status, ctypes.byref(text))
        words = [(value.value or b"unknown").decode() for value in (name, text)]
        raise cuda_error(call, *words)


__all__ = ["CudaError", "PyCudaDevice", "open_pycuda"]
