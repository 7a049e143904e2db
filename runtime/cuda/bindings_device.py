"""CUDA through ``cuda-bindings``: NVIDIA's own wheels, no compiler needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cuda.bindings import driver

from runtime.cuda.owned import Memory, Owned, Owner, Pinned, cuda_error, explain_out_of_memory
from runtime.errors import BackendUnavailable


def open_bindings(index: int) -> BindingsDevice:
    """Open a GPU.

    Raises:
        BackendUnavailable: No driver, or no such GPU.
    """
    try:
        status = driver.cuInit(0)[0]
        if int(status):
            raise BackendUnavailable(f"cuInit: {_words(status)[0]}: no NVIDIA driver or no GPU")
        count = _check("cuDeviceGetCount", driver.cuDeviceGetCount())
    except RuntimeError as error:  # cuda-bindings finds no libcuda
        if isinstance(error, BackendUnavailable):
            raise
        raise BackendUnavailable(f"no NVIDIA driver: {str(error).splitlines()[0]}") from error
    if index >= count:
        raise BackendUnavailable(f"no GPU {index}: the driver sees {count}")
    return BindingsDevice(index)


class BindingsDevice:
    """See ``runtime.cuda.device.CudaDevice``."""

    library = "cuda-bindings"

    def __init__(self, index: int) -> None:
        self._owner = Owner()
        self._device = _check("cuDeviceGet", driver.cuDeviceGet(index))
        name = _check("cuDeviceGetName", driver.cuDeviceGetName(128, self._device))
        self.name = bytes(name).split(b"\0")[0].decode()
        attribute = driver.CUdevice_attribute
        self.sm = (
            self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self._context: Any = _check(
            "cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(self._device)
        )

    def _attribute(self, which: Any) -> int:
        return int(_check("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(which, self._device)))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current for the calling thread."""
        _check("cuCtxPushCurrent", driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            _check("cuCtxPopCurrent", driver.cuCtxPopCurrent())

    def new_stream(self) -> BindingsStream:
        """Make a non-blocking stream."""
        return BindingsStream(self._owner)

    def new_event(self, *, timing: bool = False) -> BindingsEvent:
        """Make an event."""
        return BindingsEvent(self._owner, timing=timing)

    def pinned_buffer(self, num_bytes: int) -> Pinned:
        """Allocate page-locked host memory."""
        address = int(_check("cuMemHostAlloc", driver.cuMemHostAlloc(num_bytes, 0)))
        return Pinned(
            self._owner,
            address,
            num_bytes,
            lambda: _check("cuMemFreeHost", driver.cuMemFreeHost(address)),
        )

    def device_buffer(self, num_bytes: int) -> Memory:
        """Allocate device memory."""
        with explain_out_of_memory(num_bytes, self.memory_bytes):
            pointer = _check("cuMemAlloc", driver.cuMemAlloc(num_bytes))
        return Memory(
            self._owner,
            int(pointer),
            num_bytes,
            lambda: _check("cuMemFree", driver.cuMemFree(pointer)),
        )

    def copy_to_device(
        self, target: Memory, source: Pinned, num_bytes: int, stream: BindingsStream
    ) -> None:
        """Enqueue a copy."""
        result = driver.cuMemcpyHtoDAsync(target.address, source.address, num_bytes, stream.handle)
        _check("cuMemcpyHtoDAsync", result)

    def copy_to_host(
        self, target: Pinned, source: Memory, num_bytes: int, stream: BindingsStream
    ) -> None:
        """Enqueue a copy."""
        result = driver.cuMemcpyDtoHAsync(target.address, source.address, num_bytes, stream.handle)
        _check("cuMemcpyDtoHAsync", result)

    def capture(self, stream: BindingsStream, work: Callable[[], None]) -> BindingsGraph:
        """Record what ``work`` enqueues; the mode leaves other threads' calls alone."""
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check("cuStreamBeginCapture", driver.cuStreamBeginCapture(stream.handle, mode))
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(stream.handle)  # the work's own error is the one to tell
            raise
        graph = _check("cuStreamEndCapture", driver.cuStreamEndCapture(stream.handle))
        try:
            runnable = _check("cuGraphInstantiate", driver.cuGraphInstantiate(graph, 0))
        finally:
            _check("cuGraphDestroy", driver.cuGraphDestroy(graph))
        return BindingsGraph(self._owner, runnable)

    def memory_bytes(self) -> tuple[int, int]:
        """Get free and total device memory."""
        free, total = _check("cuMemGetInfo", driver.cuMemGetInfo())
        return int(free), int(total)

    def close(self) -> None:
        """Free what is left and release the primary context."""
        if self._context is None:
            return
        try:
            with self.current():
                self._owner.free_all()
        finally:
            self._context = None
            _check("cuDevicePrimaryCtxRelease", driver.cuDevicePrimaryCtxRelease(self._device))


class BindingsStream(Owned):
    """A stream."""

    def __init__(self, owner: Owner) -> None:
        flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = _check("cuStreamCreate", driver.cuStreamCreate(flag))
        super().__init__(owner, lambda: _check("cuStreamDestroy", driver.cuStreamDestroy(stream)))
        self.handle = int(stream)

    def wait(self, event: BindingsEvent) -> None:
        """Let later work wait for an event."""
        _check("cuStreamWaitEvent", driver.cuStreamWaitEvent(self.handle, event.handle, 0))

    def synchronize(self) -> None:
        """Wait on the host."""
        _check("cuStreamSynchronize", driver.cuStreamSynchronize(self.handle))


class BindingsEvent(Owned):
    """An event."""

    def __init__(self, owner: Owner, *, timing: bool) -> None:
        flags = driver.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        self.handle = _check("cuEventCreate", driver.cuEventCreate(flag))
        super().__init__(
            owner, lambda: _check("cuEventDestroy", driver.cuEventDestroy(self.handle))
        )

    def record(self, stream: BindingsStream) -> None:
        """Put the mark."""
        _check("cuEventRecord", driver.cuEventRecord(self.handle, stream.handle))

    def synchronize(self) -> None:
        """Wait on the host."""
        _check("cuEventSynchronize", driver.cuEventSynchronize(self.handle))

    def ms_since(self, start: BindingsEvent) -> float:
        """Measure device time."""
        return float(
            _check("cuEventElapsedTime", driver.cuEventElapsedTime(start.handle, self.handle))
        )


class BindingsGraph(Owned):
    """Captured work."""

    def __init__(self, owner: Owner, runnable: Any) -> None:
        super().__init__(
            owner, lambda: _check("cuGraphExecDestroy", driver.cuGraphExecDestroy(runnable))
        )
        self._runnable = runnable

    def launch(self, stream: BindingsStream) -> None:
        """Enqueue it."""
        _check("cuGraphLaunch", driver.cuGraphLaunch(self._runnable, stream.handle))


def _check(call: str, result: Any) -> Any:
    """Turn ``(status, value, ...)`` into the value, or into an error."""
    status, *values = result
    if int(status):
        raise cuda_error(call, *_words(status))
    return values[0] if len(values) == 1 else tuple(values) or None


def _words(status: Any) -> tuple[str, str]:
    """Get the driver's name of a status and what it says about it."""
    words = []
    for function in (driver.cuGetErrorName, driver.cuGetErrorString):
        failed, text = function(status)
        words.append(str(int(status)) if int(failed) else bytes(text).decode())
    return words[0], words[1]
