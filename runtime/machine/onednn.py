"""bf16 in oneDNN, the CPU library of OpenVINO: computed by the CPU, or emulated."""

from __future__ import annotations

import os

from runtime.machine.machine import cpu_flags

MAX_ISA = "ONEDNN_MAX_CPU_ISA"
"""Environment variable that limits the instructions of oneDNN."""
_BELOW_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
_BELOW_BF16 = (*_BELOW_AVX512, "AVX512_CORE", "AVX512_CORE_VNNI")


def has_bf16() -> bool:
    """Check for bf16 arithmetic: without it, bf16 is 1.7 to 3 times slower than fp32."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags()) and _limit() not in _BELOW_BF16


def emulates_bf16() -> bool:
    """Check for AVX-512, with which oneDNN can emulate bf16."""
    return "avx512f" in cpu_flags() and _limit() not in _BELOW_AVX512


def _limit() -> str:
    return os.environ.get(MAX_ISA, "").upper()
