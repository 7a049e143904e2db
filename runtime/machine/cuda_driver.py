"""The GPUs as the CUDA driver lists them, with ctypes: no CUDA library, no context and no GPU memory."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

_DRIVER = "libcuda.so.1"
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h.
_MAJOR, _MINOR = 75, 76


class CudaGpu(NamedTuple):
    """A GPU as the CUDA driver describes it."""

    name: str
    """Name, such as ``NVIDIA GeForce RTX 3060``."""
    compute_capability: str
    """Compute capability, such as ``8.6``."""
    memory_bytes: int
    """Total memory."""
    pci_bus_id: str
    """PCI bus id in CUDA's spelling."""


class CudaListing(NamedTuple):
    """The driver's answer."""

    gpus: tuple[CudaGpu, ...]
    """GPUs in CUDA's order, without those that CUDA_VISIBLE_DEVICES hides."""
    problem: str
    """Error of the driver, such as ``CUDA_ERROR_NO_DEVICE``; empty if there was none."""


class _DriverError(Exception):
    """A call of the driver failed."""


def list_cuda_gpus() -> CudaListing | None:
    """Ask the CUDA driver for its GPUs; ``None`` without a driver library."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    try:
        _call(driver, "cuInit", 0)
        count = ctypes.c_int()
        _call(driver, "cuDeviceGetCount", ctypes.byref(count))
        return CudaListing(tuple(_describe(driver, index) for index in range(count.value)), "")
    except _DriverError as error:
        return CudaListing((), str(error))


def _describe(driver: ctypes.CDLL, index: int) -> CudaGpu:
    device, major, minor, size = (ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t())
    name, bus_id = ctypes.create_string_buffer(128), ctypes.create_string_buffer(32)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceGetPCIBusId", bus_id, len(bus_id), device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    return CudaGpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=size.value,
        pci_bus_id=bus_id.value.decode(),
    )


def _call(driver: ctypes.CDLL, name: str, *arguments: Any) -> None:
    status = getattr(driver, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(text))
        raise _DriverError(text.value.decode() if text.value else f"error {status}")
