"""What this machine is: its CPU and its NVIDIA cards, read from the system, no library needed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class NvidiaCard:
    """An NVIDIA card, as its driver describes it."""

    name: str
    """Name, such as ``NVIDIA GeForce RTX 3060``."""
    driver: str
    """Driver version, such as ``580.95.05``."""
    memory: str
    """Memory with its unit, such as ``12288 MiB``."""
    compute_capability: str | None
    """Such as ``8.6``; ``None`` where the driver is too old to tell."""


def cpu_name() -> str:
    """Name the CPU, as the kernel does, with the cores this process may use."""
    return f"{_cpu_field('model name') or platform.machine()} ({num_cores()} cores)"


def num_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_flags() -> frozenset[str]:
    """Read the CPU's instruction-set flags, such as ``avx512_bf16``; empty where the kernel lists none."""
    return frozenset((_cpu_field("flags") or "").split())


def source_revision() -> str:
    """Get the commit of this source folder, ``-dirty`` with local changes; ``unknown`` outside a checkout."""
    folder = str(Path(__file__).parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()


def nvidia_gpus() -> tuple[str, ...]:
    """List the NVIDIA cards and their driver version, as ``nvidia-smi`` does; empty where it is silent."""
    if shutil.which("nvidia-smi") is None:
        return ()
    return _ask_nvidia_smi("name,driver_version,memory.total")


def nvidia_cards() -> tuple[NvidiaCard, ...]:
    """List the NVIDIA cards with their compute capability; empty where ``nvidia-smi`` is silent."""
    lines = nvidia_gpus()
    # Asked apart: a driver before R470 does not know the field, and then answers nothing at all.
    told = _ask_nvidia_smi("compute_cap") if lines else ()
    capabilities = told if len(told) == len(lines) else ("",) * len(lines)
    return tuple(map(_card, lines, capabilities))


def nvidia_states() -> tuple[str, ...]:
    """Describe what each NVIDIA card is doing now: clock, temperature, power, and what throttles it.

    Returns:
        Such as ``1980 of 1980 MHz, 45 C, 312.10 W, throttle 0x0``; the bits are NVML's, 0x1 is idle. Reading
        changes nothing on the card.
    """
    fields = "clocks.sm,clocks.max.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    return tuple(map(_state, _ask_nvidia_smi(fields) if nvidia_gpus() else ()))


def _state(line: str) -> str:
    clock, top, heat, power, reasons = (part.strip() for part in f"{line},,,,".split(",")[:5])
    bits = reasons.lower().removeprefix("0x").lstrip("0") or "0"
    return f"{clock.removesuffix(' MHz')} of {top}, {heat} C, {power}, throttle 0x{bits}"


def _card(line: str, capability: str) -> NvidiaCard:
    name, driver, memory = (part.strip() for part in f"{line},,".split(",")[:3])
    is_told = re.fullmatch(r"\d+\.\d", capability.strip())
    return NvidiaCard(
        name=name,
        driver=driver,
        memory=memory,
        compute_capability=is_told[0] if is_told else None,
    )


def _ask_nvidia_smi(fields: str) -> tuple[str, ...]:
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
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
