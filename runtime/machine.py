"""What this machine is: its CPU and its NVIDIA cards, read from the system, no library needed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path


def cpu_name() -> str:
    """Name the CPU, as the kernel does, with the cores this process may use."""
    return f"{_cpu_field('model name') or platform.machine()} ({num_cores()} cores)"


def num_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_flags() -> frozenset[str]:
    """Read the CPU's instruction-set flags, such as ``avx512_bf16``; empty where the kernel lists none."""
    return frozenset((_cpu_field("flags") or "").split())


def nvidia_gpus() -> tuple[str, ...]:
    """List the NVIDIA cards and their driver version, as ``nvidia-smi`` does; empty where it is silent."""
    if shutil.which("nvidia-smi") is None:
        return ()
    return _ask_nvidia_smi("name,driver_version,memory.total")


def gpu_capabilities() -> tuple[str, ...]:
    """List the compute capability of each NVIDIA card, such as ``8.6``; empty where the driver is too old."""
    found = _ask_nvidia_smi("compute_cap") if shutil.which("nvidia-smi") else ()
    return found if all(re.fullmatch(r"\d+\.\d", text) for text in found) else ()


def _ask_nvidia_smi(fields: str) -> tuple[str, ...]:
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except subprocess.SubprocessError:
        return ()
    return tuple(result.stdout.strip().splitlines())


def _cpu_field(key: str) -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
