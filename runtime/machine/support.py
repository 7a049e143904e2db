"""Newest TensorRT, driver and Python for each compute capability, and the precisions to avoid."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from runtime.machine.gpus import Sm, sm_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The newest software that supports a compute capability."""

    tensorrt: str
    """Newest TensorRT."""
    driver: str
    """Newest driver branch; ``newest`` if no end of support is announced."""
    python: str
    """Newest Python with wheels of that TensorRT."""
    runs_rtx: bool
    """True if TensorRT-RTX supports it."""
    source: str
    """Publication of these limits."""
    note: str = ""
    """Additional advice; may be empty."""

    @property
    def is_final(self) -> bool:
        """True if newer software no longer supports these GPUs."""
        return self.driver != "newest"

    def supports(self, tensorrt_version: str) -> bool:
        """Check that a TensorRT still supports these GPUs."""
        newest = version_numbers(self.tensorrt)[:2]
        return not self.is_final or version_numbers(tensorrt_version)[:2] <= newest


_DOCS = "docs.nvidia.com"
_MATRIX = f"{_DOCS}/datacenter/tesla/drivers/cuda-toolkit-driver-and-architecture-matrix.html"
_TENSORRT = f"{_DOCS}/deeplearning/tensorrt"
_PASCAL = Limits(
    tensorrt="8.6.1",
    driver="R580",
    python="3.11",
    runs_rtx=False,
    source=f"{_TENSORRT}/archives/tensorrt-1010/support-matrix (SM 7.0 or higher); "
    f"NVIDIA/TensorRT issue 3826; {_MATRIX}; wheels of tensorrt_bindings 8.6.1",
)
_VOLTA = replace(
    _PASCAL,
    tensorrt="10.4",
    python="3.12",
    source=f"{_TENSORRT}/latest/getting-started/release-notes-10/10.5.0.html; {_MATRIX}; "
    "wheels of tensorrt-cu12-bindings 10.4.0",
)
_CURRENT = Limits(
    tensorrt="11.4",
    driver="newest",
    python="3.14",
    runs_rtx=True,
    source=f"{_TENSORRT}/11.4.0/installing-tensorrt/prerequisites.html; ComputeCapability enum of "
    "TensorRT-RTX 1.7",
)
_NO_RTX = replace(_CURRENT, runs_rtx=False)
_LIMITS: dict[Sm, Limits] = {
    (6, 0): _PASCAL,
    (6, 1): _PASCAL,
    (7, 0): _VOLTA,
    (7, 5): _CURRENT,
    (8, 0): replace(
        _CURRENT, note="TensorRT-RTX builds for SM 8.0, but its support matrix does not list it"
    ),
    (8, 6): _CURRENT,
    (8, 7): replace(
        _NO_RTX,
        source=f"{_TENSORRT}/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
        note="TensorRT 11.4 needs JetPack 7.2.2 or newer, on AGX Orin; JetPack 6 has TensorRT 10",
    ),
    (8, 9): _CURRENT,
    (9, 0): _NO_RTX,
    (10, 0): _NO_RTX,
    (12, 0): _CURRENT,
    (12, 1): _CURRENT,
}

# Sources: _RATES in gpus.py; PTX ISA (dp4a needs sm_61); "TX2 doesn't support INT8 operation", NVIDIA on
# forums.developer.nvidia.com/t/55481. SM 7.0 has DP4A only: half the rate of its FP16 tensor cores.
_ADVICE: dict[tuple[Sm, str], str] = {
    ((6, 0), "int8"): "SM 6.0 has no INT8 instructions: use FP16 or FP32",
    (
        (6, 1),
        "fp16",
    ): "FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8, the fast choice there, or FP32",
    ((6, 2), "int8"): "TensorRT has no INT8 for SM 6.2: use FP16 or FP32",
    ((7, 0), "int8"): "SM 7.0 has no INT8 tensor cores, FP16 is twice as fast: use FP16",
}


def version_numbers(version: str) -> tuple[int, ...]:
    """Get the numbers of a version: ``8.6.1`` is (8, 6, 1); empty for text without one."""
    return tuple(map(int, re.findall(r"\d+", version)))


def limits_of(sm: Sm) -> Limits:
    """Get the limits of a compute capability; one that is not in the table gets those of the next lower."""
    if sm in _LIMITS:
        return _LIMITS[sm]
    nearest = max((known for known in _LIMITS if known < sm), default=min(_LIMITS))
    note = f"SM {sm_text(sm)} is not in our table: these are the limits of SM {sm_text(nearest)}"
    return replace(_LIMITS[nearest], note=note)


def advice_for(sm: Sm, precision: str) -> str | None:
    """Explain in one line why a precision is a poor choice on a GPU; ``None`` if it is a good one.

    Args:
        sm: Compute capability.
        precision: ``fp32``, ``fp16`` or ``int8``.
    """
    return _ADVICE.get((sm, precision))
