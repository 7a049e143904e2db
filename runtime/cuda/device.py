"""The narrow interface to CUDA that the runtime uses, and how a library that fills it is chosen."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Protocol

import numpy as np

from runtime.errors import BackendUnavailable, InvalidInput


class Stream(Protocol):
    """A queue of device work."""

    handle: int
    """The driver's ``CUstream``, for libraries that enqueue on it."""

    def wait(self, event: Event) -> None:
        """Let later work on this stream wait for an event; the host does not wait."""
        ...

    def synchronize(self) -> None:
        """Wait on the host until all work is done. Errors of earlier work are raised here."""
        ...

    def free(self) -> None:
        """Destroy it; a second call does nothing."""
        ...


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Put the mark behind the work that the stream holds now."""
        ...

    def synchronize(self) -> None:
        """Wait on the host until the mark is reached."""
        ...

    def ms_since(self, start: Event) -> float:
        """Measure device time from ``start``, both reached, both made with ``timing``."""
        ...

    def free(self) -> None:
        """Destroy it; a second call does nothing."""
        ...


class PinnedBuffer(Protocol):
    """Page-locked host memory."""

    array: np.ndarray
    """All of it, uint8 (num_bytes,): a view, valid until ``free``."""

    def free(self) -> None:
        """Give it back; a second call does nothing."""
        ...


class DeviceBuffer(Protocol):
    """Device memory."""

    address: int
    """Device address."""
    num_bytes: int
    """Size."""

    def free(self) -> None:
        """Give it back; a second call does nothing."""
        ...


class Graph(Protocol):
    """Captured work that is launched as a whole."""

    def launch(self, stream: Stream) -> None:
        """Enqueue it."""
        ...

    def free(self) -> None:
        """Destroy it; a second call does nothing."""
        ...


class CudaDevice(Protocol):
    """One GPU through its primary context, which other CUDA libraries of the process share.

    Every method may be called from any thread inside ``with device.current():``.
    """

    library: str
    """``pycuda`` or ``cuda-bindings``."""
    name: str
    """The GPU's name."""
    sm: tuple[int, int]
    """Compute capability."""

    def current(self) -> AbstractContextManager[None]:
        """Make the primary context current for the calling thread; may be nested."""
        ...

    def new_stream(self) -> Stream:
        """Make a non-blocking stream."""
        ...

    def new_event(self, *, timing: bool = False) -> Event:
        """Make an event; without ``timing`` it is cheaper."""
        ...

    def pinned_buffer(self, num_bytes: int) -> PinnedBuffer:
        """Allocate page-locked host memory."""
        ...

    def device_buffer(self, num_bytes: int) -> DeviceBuffer:
        """Allocate device memory.

        Raises:
            CudaError: Out of memory, with the size asked for and what is free.
        """
        ...

    def copy_to_device(
        self, target: DeviceBuffer, source: PinnedBuffer, num_bytes: int, stream: Stream
    ) -> None:
        """Enqueue a copy of the first ``num_bytes``."""
        ...

    def copy_to_host(
        self, target: PinnedBuffer, source: DeviceBuffer, num_bytes: int, stream: Stream
    ) -> None:
        """Enqueue a copy of the first ``num_bytes``."""
        ...

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues on ``stream`` instead of running it.

        Raises:
            CudaError: The work cannot be captured; the stream is usable again.
        """
        ...

    def memory_bytes(self) -> tuple[int, int]:
        """Get free and total device memory."""
        ...

    def close(self) -> None:
        """Release the primary context; a second call does nothing."""
        ...


# PyCUDA first, as its users chose it; cuda-bindings needs no compiler.
CUDA_LIBRARIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "pycuda": ("pycuda", "runtime.cuda.pycuda_device:open_pycuda"),
        "cuda-bindings": ("cuda.bindings", "runtime.cuda.bindings_device:open_bindings"),
    }
)


def open_device(library: str | None = None, *, index: int = 0) -> CudaDevice:
    """Open a GPU with a library of ``CUDA_LIBRARIES``; ``None`` takes the first that is installed and loads.

    Raises:
        BackendUnavailable: No library is installed, or there is no driver or GPU; the message says which.
        InvalidInput: No such library.
    """
    if library is not None and library not in CUDA_LIBRARIES:
        raise InvalidInput(
            f"unknown CUDA library {library!r}", hint=f"libraries: {', '.join(CUDA_LIBRARIES)}"
        )
    reasons = []
    for name in [library] if library else CUDA_LIBRARIES:
        module, target = CUDA_LIBRARIES[name]
        if not _has(module):
            reasons.append(f"{name} is not installed")
            continue
        file, _, function = target.partition(":")
        try:
            opener: Callable[[int], CudaDevice] = getattr(importlib.import_module(file), function)
            return opener(index)
        except (BackendUnavailable, ImportError) as error:
            reasons.append(f"{name}: {error}")
    raise BackendUnavailable(
        f"no GPU can be used: {'; '.join(reasons)}",
        hint="esnet-doctor tells what is missing; pip install 'esnet-deploy[pycuda]', or cuda-bindings "
        "where no compiler is at hand",
    )


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
