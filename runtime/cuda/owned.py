"""What the CUDA libraries have in common: everything a device makes is known to it, and freed with it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class Owned:
    """Something of the driver's that is freed once, by its user or with its device."""

    def __init__(self, owner: Owner, free: Callable[[], None]) -> None:
        self._owner, self._free = owner, free
        owner.take(self)

    def free(self) -> None:
        """Give it back; a second call does nothing."""
        free, self._free = self._free, None  # type: ignore[assignment]  # None marks it as given back
        if free is not None:
            self._owner.drop(self)
            free()


class Owner:
    """Keeps what was made, and frees the rest in reverse order when it is closed."""

    def __init__(self) -> None:
        self._items: dict[int, Owned] = {}

    def take(self, item: Owned) -> None:
        """Remember an item."""
        self._items[id(item)] = item

    def drop(self, item: Owned) -> None:
        """Forget an item that is freed."""
        self._items.pop(id(item), None)

    def free_all(self) -> None:
        """Free what is left; everything is tried, the first error is raised."""
        errors: list[Exception] = []
        for item in reversed(list(self._items.values())):
            try:
                item.free()
            except Exception as error:  # the others must be freed too
                errors.append(error)
        if errors:
            raise errors[0]


class Pinned(Owned):
    """Page-locked host memory around an address."""

    def __init__(
        self, owner: Owner, address: int, num_bytes: int, free: Callable[[], None]
    ) -> None:
        super().__init__(owner, free)
        self.address = address
        block = (ctypes.c_uint8 * num_bytes).from_address(address)
        self.array: np.ndarray = np.ctypeslib.as_array(block)


class Memory(Owned):
    """Device memory."""

    def __init__(
        self, owner: Owner, address: int, num_bytes: int, free: Callable[[], None]
    ) -> None:
        super().__init__(owner, free)
        self.address, self.num_bytes = address, num_bytes


def cuda_error(call: str, name: str, text: str) -> CudaError:
    """Make an error that says which call failed, in the driver's own words, and what to do."""
    if name.endswith("OUT_OF_MEMORY"):
        hint = "free GPU memory (nvidia-smi lists who holds it), or use a smaller batch"
    elif any(word in name for word in _STICKY):
        hint = "the GPU is lost to this process: restart it; dmesg shows what the driver saw"
    else:
        hint = "esnet-doctor tells whether driver and libraries fit together"
    return CudaError(f"{call} failed: {name}, {text}", hint=hint)


@contextmanager
def explain_out_of_memory(
    num_bytes: int, free_and_total: Callable[[], tuple[int, int]]
) -> Iterator[None]:
    """Add to an out-of-memory error what was asked for and what is there."""
    try:
        yield
    except CudaError as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        free, total = free_and_total()
        raise CudaError(
            f"GPU memory is full: {num_bytes / 1e6:.1f} MB asked for, "
            f"{free / 1e6:.1f} of {total / 1e6:.0f} MB free",
            hint=error.hint,
        ) from error
