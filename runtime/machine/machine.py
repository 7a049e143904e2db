"""The machine: its CPU, its NVIDIA GPUs by CUDA and NVML, and the commit of this source folder."""

from __future__ import annotations

import importlib
import os
import platform
import re
import resource
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from runtime.machine.cuda_driver import CudaGpu, list_cuda_gpus

_UNKNOWN = "unknown"
# The kernel module of the NVIDIA driver makes this file.
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_STATUS_FILE = Path("/proc/self/status")

_T = TypeVar("_T")
_Query = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class NvidiaGpu:
    """An NVIDIA GPU. Text that neither CUDA nor NVML gives is ``unknown``."""

    name: str
    """Name, such as ``NVIDIA GeForce RTX 3060``."""
    driver: str
    """Driver version, such as ``580.95.05``."""
    memory_bytes: int | None
    """Total memory; ``None`` if unknown."""
    compute_capability: str | None
    """Compute capability, such as ``8.6``; ``None`` if unknown."""
    pci_bus_id: str
    """PCI bus id in the spelling of ``normalise_bus_id``; CUDA and NVML number the GPUs differently."""
    index: int | None = None
    """CUDA's number; ``None`` if CUDA does not list it."""
    used_bytes: int | None = None
    """Memory in use by all processes; ``None`` without NVML."""

    def __str__(self) -> str:
        """Format as ``NAME, DRIVER, MEMORY``."""
        memory = _UNKNOWN if self.memory_bytes is None else f"{self.memory_bytes >> 20} MiB"
        return f"{self.name}, {self.driver}, {memory}"

    def as_text(self) -> str:
        """Format with CUDA's number, PCI bus id and memory in use."""
        number = "not listed by CUDA:" if self.index is None else f"cuda:{self.index}"
        used = "" if self.used_bytes is None else f", {self.used_bytes >> 20} MiB in use"
        return f"{number} {self}{used}, {self.pci_bus_id}"


def cpu_name() -> str:
    """Get the CPU's name from the kernel, with the number of cores that this process may use."""
    return f"{_cpu_field('model name') or platform.machine()} ({num_cores()} cores)"


def num_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_flags() -> frozenset[str]:
    """Read the CPU's instruction-set flags, such as ``avx512_bf16``; empty if the kernel lists none."""
    return frozenset((_cpu_field("flags") or "").split())


def peak_memory_bytes() -> int:
    """Get the peak resident memory of this process.

    It is the kernel's VmHWM. ``ru_maxrss``, the fallback, is at least the parent's memory at the start.
    """
    match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS_FILE.read_text(), re.MULTILINE)
    kilobytes = int(match[1]) if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024


def source_revision() -> str:
    """Get the commit of this source folder, ``-dirty`` with local changes; ``unknown`` outside a checkout."""
    folder = str(Path(__file__).parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return _UNKNOWN
    return result.stdout.strip()


def nvidia_gpus() -> tuple[NvidiaGpu, ...]:
    """List the NVIDIA GPUs in CUDA's order, then those that only NVML lists; empty without a driver.

    The order of NVML is another one. GPUs are matched by their PCI bus id.
    """
    listing = list_cuda_gpus()
    by_nvml = _read_gpus(_describe)
    at_bus = {gpu.pci_bus_id: gpu for gpu in by_nvml}
    by_cuda = []
    for index, gpu in enumerate(listing.gpus if listing else ()):
        bus_id = normalise_bus_id(gpu.pci_bus_id)
        by_cuda.append(replace(_merge(gpu, bus_id, at_bus.get(bus_id)), index=index))
    found = {gpu.pci_bus_id for gpu in by_cuda}
    return (*by_cuda, *(gpu for gpu in by_nvml if gpu.pci_bus_id not in found))


def gpu_with_bus_id(pci_bus_id: str) -> NvidiaGpu | None:
    """Find the GPU at a PCI bus id, in any spelling; ``None`` if NVML lists no such GPU."""
    wanted = normalise_bus_id(pci_bus_id)
    return next((gpu for gpu in nvidia_gpus() if gpu.pci_bus_id == wanted), None)


def gpu_states() -> tuple[str, ...]:
    """Read clock, temperature, power and throttle reasons of each NVIDIA GPU; nothing is changed on it.

    Returns:
        One line per GPU in NVML's order, such as ``0000:01:00.0: 1980 of 1980 MHz, 45 C, 312.10 W,
        throttle 0x0``. The bits are NVML's clock event reasons; 0x1 is idle. A value that the GPU or its
        driver does not support is ``unknown``. Empty without nvidia-ml-py or a working driver.
    """
    return _read_gpus(_describe_state)


def driver_problem() -> str | None:
    """Explain why no GPU is listed although an NVIDIA driver is loaded; ``None`` without a driver."""
    listing = list_cuda_gpus()
    if listing is None and not _DRIVER_FILE.exists():
        return None
    cuda = f"the CUDA driver says {listing.problem or 'that there is none'}" if listing else ""
    nvml = "NVML lists none" if has_nvml() else "nvidia-ml-py is not installed"
    return f"{cuda or 'libcuda.so.1 is not found'}, {nvml}"


def has_nvml() -> bool:
    """Check that nvidia-ml-py, the Python module of NVML, is installed."""
    return _import_nvml() is not None


def normalise_bus_id(pci_bus_id: str) -> str:
    """Write a PCI bus id as Linux does, ``0000:3b:00.0``.

    NVML pads the domain to 8 digits and CUDA to 4, and both may use upper case.
    """
    domain, _, rest = pci_bus_id.strip().lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}"
    except ValueError:
        return pci_bus_id


def _merge(gpu: CudaGpu, bus_id: str, nvml: NvidiaGpu | None) -> NvidiaGpu:
    """Describe a GPU of the CUDA driver, whose version is NVML's or that of the kernel module."""
    if nvml is not None:
        return replace(nvml, name=gpu.name, compute_capability=gpu.compute_capability)
    return NvidiaGpu(
        name=gpu.name,
        driver=_loaded_driver(),
        memory_bytes=gpu.memory_bytes,
        compute_capability=gpu.compute_capability,
        pci_bus_id=bus_id,
    )


def _loaded_driver() -> str:
    """Read the version of the loaded driver from the file of its kernel module."""
    text = _DRIVER_FILE.read_text() if _DRIVER_FILE.is_file() else ""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return match[1] if match else _UNKNOWN


def _import_nvml() -> Any | None:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def _read_gpus(read: Callable[[Any, _Query], _T]) -> tuple[_T, ...]:
    """Call ``read`` with handle and query function of each GPU, while NVML is started."""
    nvml = _import_nvml()
    if nvml is None:
        return ()

    def query(function: str, *arguments: Any) -> Any:
        """Call NVML; get ``None`` if the GPU, the driver or this nvidia-ml-py does not support it."""
        try:
            value = getattr(nvml, function)(*arguments)
        except (nvml.NVMLError, AttributeError):
            return None
        return _decode(value)

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(
            read(query("nvmlDeviceGetHandleByIndex", index), query)
            for index in range(query("nvmlDeviceGetCount") or 0)
        )
    finally:
        nvml.nvmlShutdown()


def _describe(handle: Any, query: _Query) -> NvidiaGpu:
    memory = query("nvmlDeviceGetMemoryInfo", handle)
    capability = query("nvmlDeviceGetCudaComputeCapability", handle)
    return NvidiaGpu(
        name=query("nvmlDeviceGetName", handle) or _UNKNOWN,
        driver=query("nvmlSystemGetDriverVersion") or _UNKNOWN,
        memory_bytes=None if memory is None else int(memory.total),
        used_bytes=None if memory is None else int(memory.used),
        compute_capability=None if capability is None else "{}.{}".format(*capability),
        pci_bus_id=_bus_id(handle, query),
    )


def _describe_state(handle: Any, query: _Query) -> str:
    def text(value: float | None, form: str = "{}") -> str:
        return _UNKNOWN if value is None else form.format(value)

    # Constants of nvml.h: NVML_CLOCK_SM is 1, NVML_TEMPERATURE_GPU is 0.
    clock = text(query("nvmlDeviceGetClockInfo", handle, 1))
    max_clock = text(query("nvmlDeviceGetMaxClockInfo", handle, 1))
    heat = text(query("nvmlDeviceGetTemperature", handle, 0))
    milliwatts = query("nvmlDeviceGetPowerUsage", handle)
    watts = text(None if milliwatts is None else milliwatts / 1000, "{:.2f}")
    reasons = query("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # drivers before R535 have this query under its old name only
        reasons = query("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    state = f"{clock} of {max_clock} MHz, {heat} C, {watts} W, throttle {text(reasons, '{:#x}')}"
    return f"{_bus_id(handle, query)}: {state}"


def _bus_id(handle: Any, query: _Query) -> str:
    pci = query("nvmlDeviceGetPciInfo", handle)
    return _UNKNOWN if pci is None else normalise_bus_id(_decode(pci.busId))


def _decode(value: Any) -> Any:
    """Decode text, which old versions of nvidia-ml-py return as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _cpu_field(key: str) -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(rf"^{key}\s*:(.*)$", text, re.MULTILINE)
    return match and match[1].strip()
