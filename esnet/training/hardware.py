"""Choice of accelerator and precision, and the memory allocator setting for training on a CPU."""

from __future__ import annotations

import ctypes

import torch

from esnet.errors import TrainingError
from runtime.machine.machine import cpu_flags

_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def choose_accelerator(requested: str, devices: int) -> str:
    """Choose ``cpu`` or ``gpu``; ``auto`` takes a GPU if torch sees one.

    Raises:
        TrainingError: There are fewer GPUs than requested.
    """
    num_gpus = torch.cuda.device_count()
    if requested == "auto":
        requested = "gpu" if num_gpus else "cpu"
    if requested == "gpu" and devices > num_gpus:
        raise TrainingError(
            f"{devices} GPUs requested, torch {torch.__version__} sees {num_gpus}",
            hint="run esnet-doctor to list the GPUs, or train with --accelerator cpu",
        )
    return requested


def lightning_precision(requested: str, accelerator: str) -> str:
    """Get Lightning's name of a precision.

    ``auto`` is bf16 if the hardware supports it natively, else fp16 on GPUs and fp32 on CPUs.
    """
    if requested == "auto" and accelerator == "cpu":
        requested = "bf16" if cpu_flags() & _BF16_CPU_FLAGS else "fp32"
    elif requested == "auto":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        requested = "bf16" if is_native else "fp16"
    return _LIGHTNING_PRECISION[requested]


def keep_freed_memory() -> None:
    """Make glibc keep freed memory; without glibc nothing changes.

    By default glibc maps each tensor above 32 MB anew and the kernel zeroes its pages. In a CPU training step
    that takes longer than batch normalisation; without it, training is about a fifth faster. The process
    then keeps its peak memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 256 << 20)
