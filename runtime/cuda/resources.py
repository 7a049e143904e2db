"""CUDA resources, freed once by their user or with their device, and CUDA errors with hints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from runtime.errors import CudaError

# Errors after which the process can no longer use the GPU. Source: cuda.h, CUresult.
_STICKY = (
    "ILLEGAL_ADDRESS",
    "LAUNCH_FAILED",
    "LAUNCH_TIMEOUT",
    "HARDWARE_STACK_ERROR",
    "ECC_UNCORRECTABLE",
    "ASSERT",
    "DEVICE_UNAVAILABLE",
    "NOT_PERMITTED",
)


class Resource:
    """A driver object that is freed once, by its user or with its device."""

    def __init__(self, owner: ExitStack, raw: Any, destroy: Callable[[Any], object]) -> None:
        """Take the library's object ``raw``; ``owner`` frees it when it closes."""
        self.raw, self._destroy = raw, destroy
        owner.callback(self.free)

    def free(self) -> None:
        """Free it; a second call does nothing."""
        raw, self.raw = self.raw, None
        if raw is not None:
            self._destroy(raw)


class PinnedMemory(Resource):
    """Page-locked host memory."""

    def __init__(
        self, owner: ExitStack, raw: Any, destroy: Callable[[Any], object], array: np.ndarray
    ) -> None:
        super().__init__(owner, raw, destroy)
        self.array = array
        """The whole memory, uint8 (num_bytes,): a view, valid until ``free``."""


class DeviceMemory(Resource):
    """Device memory."""

    def __init__(
        self, owner: ExitStack, raw: Any, destroy: Callable[[Any], object], num_bytes: int
    ) -> None:
        super().__init__(owner, raw, destroy)
        self.address = int(raw)
        """Device address."""
        self.num_bytes = num_bytes
        """Size in bytes."""


def cuda_error(call: str, name: str, text: str) -> CudaError:
    """Make an error that names the failed call and the driver's status, with a hint.

    Args:
        call: Driver function, such as ``cuMemAlloc``.
        name: The driver's name of the status, such as ``CUDA_ERROR_OUT_OF_MEMORY``.
        text: The driver's description of the status.
    """
    if name.endswith("OUT_OF_MEMORY"):
        hint = (
            "free GPU memory (nvidia-smi lists the processes that use it), or use a smaller batch"
        )
    elif any(word in name for word in _STICKY):
        hint = (
            "this process can no longer use the GPU: restart it; dmesg shows the driver's messages"
        )
    else:
        hint = "esnet-doctor checks that the driver and the libraries fit together"
    return CudaError(f"{call} failed: {name}, {text}", hint=hint)


@contextmanager
def explain_out_of_memory(
    num_bytes: int, free_and_total: Callable[[], tuple[int, int]]
) -> Iterator[None]:
    """Add the requested size and the free and total memory, in bytes, to an out-of-memory error."""
    try:
        yield
    except CudaError as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        free, total = free_and_total()
        raise CudaError(
            f"GPU memory is full: {num_bytes / 1e6:.1f} MB requested, "
            f"{free / 1e6:.1f} of {total / 1e6:.0f} MB free",
            hint=error.hint,
        ) from error
