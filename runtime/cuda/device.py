"""The CUDA interface of the runtime, and the choice of the library that implements it."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import numpy as np

from runtime.cuda.resources import Created, DeviceMemory, PinnedMemory, Resource
from runtime.errors import BackendUnavailable, CudaError, InvalidInput
from runtime.machine.cuda_driver import list_cuda_gpus
from runtime.machine.gpus import no_such_gpu


class _Library(Protocol):
    """Calls that each CUDA library implements; ``Any`` stands for the library's objects."""

    def _push_context(self) -> None: ...
    def _pop_context(self) -> None: ...
    def _release_context(self) -> None: ...
    def _create_stream(self) -> Created: ...
    def _stream_handle(self, stream: Any) -> int: ...
    def _wait(self, stream: Any, event: Any) -> None: ...
    def _synchronize_stream(self, stream: Any) -> None: ...
    def _create_event(self, timing: bool, blocking: bool) -> Created: ...
    def _record(self, event: Any, stream: Any) -> None: ...
    def _synchronize_event(self, event: Any) -> None: ...
    def _elapsed_ms(self, start: Any, end: Any) -> float: ...
    def _register(self, memory: np.ndarray) -> Created: ...
    def _allocate(self, num_bytes: int) -> Created: ...
    def _copy_in(self, to: DeviceMemory, source: PinnedMemory, size: int, stream: Any) -> None: ...
    def _copy_out(self, to: PinnedMemory, source: DeviceMemory, size: int, stream: Any) -> None: ...
    def _memory_info(self) -> Any: ...
    def _begin_capture(self, stream: Any) -> None: ...
    def _end_capture(self, stream: Any) -> Created: ...
    def _instantiate(self, graph: Any) -> Created: ...
    def _launch(self, executable: Any, stream: Any) -> None: ...


class CudaDevice(_Library):
    """One GPU through its primary context, which other CUDA libraries of the process share.

    Every method may be called from any thread inside ``with device.current():``.
    """

    library: str
    """``pycuda`` or ``cuda-bindings``."""
    name: str
    """The GPU's name."""
    sm: tuple[int, int]
    """Compute capability."""
    pci_bus_id: str
    """PCI bus id, such as ``0000:3b:00.0``; see ``runtime.machine.machine.gpu_with_bus_id``."""

    def __init__(self, index: int, num_gpus: int) -> None:
        if num_gpus == 0:
            raise BackendUnavailable("the driver lists no GPU")
        if index >= num_gpus:
            raise no_such_gpu(index, num_gpus)
        self.index = index
        """CUDA's number of the GPU."""
        self._resources, self._users = ExitStack(), ExitStack()
        self.is_open = True
        """False after ``close``."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current for the calling thread; may be nested.

        Raises:
            CudaError: The device is closed, or the GPU failed.
        """
        if not self.is_open:
            raise CudaError(f"{self.name} is closed", hint="open the GPU or the artefact again")
        self._push_context()
        try:
            yield
        finally:
            self._pop_context()

    def new_stream(self) -> Stream:
        """Create a non-blocking stream."""
        return Stream(self)

    def new_event(self, *, timing: bool = False, blocking: bool = False) -> Event:
        """Create an event.

        Args:
            timing: True for ``ms_since``; the event is cheaper without it.
            blocking: True if a thread in ``synchronize`` sleeps; otherwise it uses a core, and wakes sooner.
        """
        return Event(self, timing=timing, blocking=blocking)

    def pinned_buffer(self, num_bytes: int) -> PinnedMemory:
        """Allocate page-locked host memory.

        Views of it own the memory: after ``free`` or ``close`` they are pageable, and still readable.

        Raises:
            CudaError: Out of host memory, with the requested size.
        """
        try:
            array = np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
            return PinnedMemory(self, self._register(array), array)
        except (CudaError, OSError) as error:
            if isinstance(error, CudaError) and "OUT_OF_MEMORY" not in str(error):
                raise
            raise CudaError(
                f"no page-locked host memory: {num_bytes / 1e6:.1f} MB requested ({error})",
                hint="free host memory (RAM), or use a smaller batch or fewer slots",
            ) from error

    def device_buffer(self, num_bytes: int) -> DeviceMemory:
        """Allocate device memory.

        Raises:
            CudaError: Out of memory, with the requested and the free size.
        """
        try:
            return DeviceMemory(self, self._allocate(num_bytes))
        except CudaError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            free, total = self.memory_bytes()
            raise CudaError(
                f"GPU memory is full: {num_bytes / 1e6:.1f} MB requested, "
                f"{free / 1e6:.1f} of {total / 1e6:.0f} MB free",
                hint=error.hint,
            ) from error

    def copy_to_device(
        self, target: DeviceMemory, source: PinnedMemory, num_bytes: int, stream: Stream
    ) -> None:
        """Enqueue a copy of the first ``num_bytes``."""
        self._copy_in(target, source, num_bytes, stream.raw)

    def copy_to_host(
        self, target: PinnedMemory, source: DeviceMemory, num_bytes: int, stream: Stream
    ) -> None:
        """Enqueue a copy of the first ``num_bytes``."""
        self._copy_out(target, source, num_bytes, stream.raw)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Capture the work that ``work`` enqueues on ``stream``, without running it.

        Calls of other threads are not affected.

        Raises:
            CudaError: The work cannot be captured; the stream is usable again.
        """
        self._begin_capture(stream.raw)
        try:
            work()
        except BaseException:
            with suppress(CudaError):  # the error of the work is raised instead
                graph, destroy = self._end_capture(stream.raw)
                destroy(graph)
            raise
        graph, destroy = self._end_capture(stream.raw)
        try:
            return Graph(self, graph)
        finally:
            destroy(graph)

    def memory_bytes(self) -> tuple[int, int]:
        """Get free and total device memory."""
        free, total = self._memory_info()
        return int(free), int(total)

    def before_close(self, close: Callable[[], None]) -> None:
        """Let ``close()`` call a function first, to wait for work that uses the device."""
        self._users.callback(close)

    def close(self) -> None:
        """Free everything that was made and release the primary context; a second call does nothing.

        Everything is freed in reverse order, also after an error.
        """
        if not self.is_open:
            return
        with ExitStack() as steps:
            steps.callback(self._release_context)
            steps.callback(setattr, self, "is_open", False)
            self._push_context()
            steps.callback(self._pop_context)
            steps.callback(self._resources.close)
            steps.callback(self._users.close)


class Stream(Resource):
    """A queue of device work."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        super().__init__(device, device._create_stream())
        self.handle = device._stream_handle(self.raw)
        """The driver's ``CUstream``, for libraries that enqueue on it."""

    def wait(self, event: Event) -> None:
        """Make later work on this stream wait for an event; the host does not wait."""
        self._device._wait(self.raw, event.raw)

    def synchronize(self) -> None:
        """Block the host until all work is done. Errors of earlier work are raised here."""
        self._device._synchronize_stream(self.raw)


class Event(Resource):
    """A marker in a stream."""

    def __init__(self, device: CudaDevice, *, timing: bool, blocking: bool) -> None:
        self._device = device
        super().__init__(device, device._create_event(timing, blocking))

    def record(self, stream: Stream) -> None:
        """Record the event after the work that the stream holds now."""
        self._device._record(self.raw, stream.raw)

    def synchronize(self) -> None:
        """Block the host until the event is reached."""
        self._device._synchronize_event(self.raw)

    def ms_since(self, start: Event) -> float:
        """Get the device time since ``start`` in ms; both were made with ``timing`` and are reached."""
        return self._device._elapsed_ms(start.raw, self.raw)


class Graph(Resource):
    """Captured work that is launched as a whole."""

    def __init__(self, device: CudaDevice, captured: Any) -> None:
        self._device = device
        super().__init__(device, device._instantiate(captured))

    def launch(self, stream: Stream) -> None:
        """Enqueue the captured work."""
        self._device._launch(self.raw, stream.raw)


# Library -> module and class. PyCUDA is the users' choice; cuda-bindings needs no compiler.
CUDA_LIBRARIES: dict[str, str] = {
    "pycuda": "runtime.cuda.pycuda_device:PyCudaDevice",
    "cuda-bindings": "runtime.cuda.bindings_device:BindingsDevice",
}


def open_device(library: str | None = None, *, index: int = 0) -> CudaDevice:
    """Open a GPU.

    Args:
        library: Key of ``CUDA_LIBRARIES``; ``None`` takes the first that is installed and loads.
        index: CUDA's number of the GPU.

    Raises:
        BackendUnavailable: No library, no driver or no GPU; the message gives the reason for each library.
        InvalidInput: Unknown library, or a number that CUDA does not list.
    """
    if library is not None and library not in CUDA_LIBRARIES:
        raise InvalidInput(
            f"unknown CUDA library {library!r}", hint=f"libraries: {', '.join(CUDA_LIBRARIES)}"
        )
    reasons = []
    for name in [library] if library else CUDA_LIBRARIES:
        module, _, class_name = CUDA_LIBRARIES[name].partition(":")
        try:
            device: CudaDevice = getattr(importlib.import_module(module), class_name)(index)
            return device
        except ImportError as error:  # a missing library, or BackendUnavailable
            reasons.append(f"{name}: {error}")
    if list_cuda_gpus() is None:
        raise BackendUnavailable(
            "no GPU can be used: this machine has no NVIDIA driver",
            hint="install the driver, or run the ONNX file, which needs no GPU; esnet-doctor shows more",
        )
    raise BackendUnavailable(
        f"no GPU can be used: {'; '.join(reasons)}",
        hint="esnet-doctor shows what is missing; pip install 'esnet-deploy[pycuda]', or pip install "
        "cuda-bindings, which needs no compiler",
    )
