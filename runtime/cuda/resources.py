"""CUDA resources, freed once by their user or with their device, and CUDA errors with hints."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import numpy as np

from runtime.errors import CudaError

Created = tuple[Any, Callable[[Any], object]]
"""An object of the CUDA library, and the function that destroys it."""

# Errors after which the process can no longer use the GPU. Source: cuda.h, CUresult.
_STICKY = re.compile(
    "ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|MISALIGNED_ADDRESS|INVALID_ADDRESS_SPACE|INVALID_PC|"
    "LAUNCH_FAILED|LAUNCH_TIMEOUT|HARDWARE_STACK_ERROR|ECC_UNCORRECTABLE|ASSERT|CONTAINED"
)

# Text in the messages of libraries -> the driver's status.
_STATUS_NAMES = {
    "illegal memory access": "CUDA_ERROR_ILLEGAL_ADDRESS",
    "launch failure": "CUDA_ERROR_LAUNCH_FAILED",
    "out of memory": "CUDA_ERROR_OUT_OF_MEMORY",
    "allocate memory": "CUDA_ERROR_OUT_OF_MEMORY",
    "timed out": "CUDA_ERROR_LAUNCH_TIMEOUT",
    "ECC error": "CUDA_ERROR_ECC_UNCORRECTABLE",
    "misaligned address": "CUDA_ERROR_MISALIGNED_ADDRESS",
    "illegal instruction": "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "assert triggered": "CUDA_ERROR_ASSERT",
    "busy or unavailable": "CUDA_ERROR_DEVICE_UNAVAILABLE",
}


class Owner(Protocol):
    """The device that frees what is left when it closes."""

    _resources: ExitStack

    def current(self) -> AbstractContextManager[None]:
        """Make the context current."""


class Resource:
    """A driver object that is freed once, by its user or with its device."""

    def __init__(self, owner: Owner, created: Created) -> None:
        self._owner = owner
        self._raw, self._destroy = created
        owner._resources.callback(self.release)

    @property
    def raw(self) -> Any:
        """The object of the CUDA library.

        Raises:
            CudaError: It was freed.
        """
        if self._raw is None:
            raise CudaError(
                f"this {type(self).__name__} was freed", hint="open the GPU or the artefact again"
            )
        return self._raw

    def free(self) -> None:
        """Free it, from any thread; a second call does nothing."""
        if self._raw is not None:
            with self._owner.current():
                self.release()

    def release(self) -> None:
        """Do the same as ``free`` while the context is current."""
        raw, self._raw = self._raw, None
        if raw is not None:
            self._destroy(raw)


class PinnedMemory(Resource):
    """Page-locked host memory."""

    def __init__(self, owner: Owner, created: Created, array: np.ndarray) -> None:
        super().__init__(owner, created)
        self.array = array
        """The whole memory, uint8 (num_bytes,). Views of it stay readable after ``free``."""

    def release(self) -> None:
        """Unlock the memory; the last view of it frees it."""
        super().release()
        self.array = np.empty(0, np.uint8)


class DeviceMemory(Resource):
    """Device memory."""

    def __init__(self, owner: Owner, created: Created) -> None:
        super().__init__(owner, created)
        self.address = int(self.raw)
        """Device address."""


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
    elif name.endswith("DEVICE_UNAVAILABLE"):  # the compute mode is exclusive or prohibited
        hint = "another process may hold the GPU: nvidia-smi lists processes and the compute mode"
    elif _STICKY.search(name):
        hint = (
            "this process can no longer use the GPU: restart it; dmesg shows the driver's messages"
        )
    else:
        hint = "esnet-doctor checks that the driver and the libraries fit together"
    return CudaError(f"{call} failed: {name}, {text}", hint=hint)


def error_from_text(call: str, text: str) -> CudaError:
    """Make the error of a library that gives no status, only a message."""
    names = (name for part, name in _STATUS_NAMES.items() if part in text)
    return cuda_error(call, next(names, "CUDA_ERROR"), text)
