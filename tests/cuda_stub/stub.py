"""The stub's functions for tests, by ctypes: counters, live objects, and host functions that play an engine.

They work in a process whose LD_LIBRARY_PATH names the stub's folder.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

KINDS = ("contexts", "streams", "events", "graphs", "graph execs", "device", "pinned")
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_kept: list[Any] = []
errors: list[BaseException] = []
"""What host functions raised."""


@functools.cache
def driver() -> ctypes.CDLL:
    """Load the stub."""
    library = ctypes.CDLL("libcuda.so.1")
    for name in ("calls", "live", "pending", "queued"):
        getattr(library, f"cuda_stub_{name}").restype = ctypes.c_uint64
    library.cuda_stub_queued.argtypes = [ctypes.c_void_p]
    library.cuda_stub_bytes.restype = ctypes.c_void_p
    library.cuda_stub_bytes.argtypes = [ctypes.c_uint64]
    library.cuLaunchHostFunc.argtypes = [ctypes.c_void_p] * 3
    library.cuCtxDestroy_v2.argtypes = [ctypes.c_void_p]
    return library


def configure(settings: dict[str, str]) -> None:
    """Set CUDA_STUB_* variables in a process that has not used the driver yet."""
    os.environ.update(settings)
    driver().cuda_stub_configure()


def calls(name: str) -> int:
    """Count the calls of a driver function, whatever its version suffix."""
    return int(driver().cuda_stub_calls(name.encode()))


def live(kind: str) -> int:
    """Count the live objects of a kind, or the bytes of ``device`` or ``pinned`` memory."""
    return int(driver().cuda_stub_live(kind.encode()))


def left() -> dict[str, int]:
    """Count everything that is live, by kind."""
    return {kind: live(kind) for kind in KINDS if live(kind)}


def pending() -> int:
    """Count the operations that are queued and have not run."""
    return int(driver().cuda_stub_pending())


def queued(handle: int) -> int:
    """Count the operations that a stream was ever given; 0 is the legacy stream."""
    return int(driver().cuda_stub_queued(handle))


def current() -> int | None:
    """Get the context that is current for this thread."""
    context = ctypes.c_void_p()
    driver().cuCtxGetCurrent(ctypes.byref(context))
    return context.value


def is_capturing(handle: int) -> bool:
    """Tell whether a stream is being captured."""
    status = ctypes.c_int()
    assert driver().cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status)) == 0
    return status.value == 1


def primary_is_active() -> bool:
    """Tell whether the primary context of GPU 0 is retained by anybody."""
    flags, active = ctypes.c_uint(), ctypes.c_int()
    driver().cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active))
    return bool(active.value)


def new_context() -> int:
    """Make a context, as another library does; it is current afterwards."""
    context = ctypes.c_void_p()
    assert driver().cuInit(0) == 0
    assert driver().cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
    assert context.value
    return context.value


def fail(name: str, nth: int = 1, code: int = 999, *, times: int = 1) -> None:
    """Let the ``nth`` call of a driver function from now on fail, and the ``times - 1`` calls after it."""
    first = calls(name) + nth
    entries = [f"{name}:{number}:{code}" for number in range(first, first + times)]
    os.environ["CUDA_STUB_FAIL"] = ",".join(entries)


def fail_never() -> None:
    """Cancel ``fail``."""
    os.environ.pop("CUDA_STUB_FAIL", None)


def memory(address: int, shape: Sequence[int]) -> np.ndarray:
    """View device memory from an address on as uint8 (*shape)."""
    size = int(np.prod(shape))
    at = driver().cuda_stub_bytes(address)
    assert at, f"{address:#x} is no device memory"
    return np.frombuffer((ctypes.c_uint8 * size).from_address(at), np.uint8).reshape(shape)


def launch(stream_handle: int, function: Callable[[], None]) -> int:
    """Enqueue a Python function on a stream, as a kernel would be, and return the driver's status."""

    def run(_: int | None) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    _kept.append(_HOST_FUNCTION(run))
    pointer = ctypes.cast(_kept[-1], ctypes.c_void_p)
    return int(driver().cuLaunchHostFunc(stream_handle, pointer, None))
