"""CUDA resources, freed once by their user or with their device, and CUDA errors with hints."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from runtime.errors import CudaError

Created = tuple[Any, Callable[[Any], object]]
"""An object of the CUDA library, and the function that destroys it."""

# Errors after which the process can no longer use the GPU. Source: cuda.h, CUresult.
_STICKY = re.compile(
    "ILLEGAL_ADDRESS|LAUNCH_FAILED|LAUNCH_TIMEOUT|HARDWARE_STACK_ERROR|ECC_UNCORRECTABLE|ASSERT|"
    "DEVICE_UNAVAILABLE|NOT_PERMITTED"
)


class Resource:
    """A driver object that is freed once, by its user or with its device."""

    def __init__(self, owner: ExitStack, created: Created) -> None:
        """Take an object of the library; ``owner`` frees it when it closes."""
        self.raw, self._destroy = created
        owner.callback(self.free)

    def free(self) -> None:
        """Free it; a second call does nothing."""
        raw, self.raw = self.raw, None
        if raw is not None:
            self._destroy(raw)


class PinnedMemory(Resource):
    """Page-locked host memory."""

    def __init__(self, owner: ExitStack, created: Created, array: np.ndarray) -> None:
        super().__init__(owner, created)
        self.array = array
        """The whole memory, uint8 (num_bytes,): a view, valid until ``free``."""


class DeviceMemory(Resource):
    """Device memory."""

    def __init__(self, owner: ExitStack, created: Created) -> None:
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
    elif _STICKY.search(name):
        hint = (
            "this process can no longer use the GPU: restart it; dmesg shows the driver's messages"
        )
    else:
        hint = "esnet-doctor checks that the driver and the libraries fit together"
    return CudaError(f"{call} failed: {name}, {text}", hint=hint)
