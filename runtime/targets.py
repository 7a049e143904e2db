"""The GPUs that people own: what each computes and moves, and which TensorRT, CUDA and Python support it.

Peaks are products of published numbers, cores x boost clock x operations a clock. They bound a roofline; no
card holds its boost clock for long.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from runtime.errors import InvalidInput
from runtime.machine import gpu_capabilities, nvidia_gpus

Sm = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A GPU."""

    name: str
    """Name, without "NVIDIA" and "GeForce"."""
    sm: Sm
    """Compute capability."""
    cores: int
    """FP32 lanes ("CUDA cores")."""
    boost_mhz: int
    """Boost clock."""
    bandwidth_gb_s: float
    """Memory bandwidth, 1e9 bytes a second."""
    memory_gb: float
    """Memory."""

    @property
    def fp32_tflops(self) -> float:
        """FP32 peak: two operations a core and clock."""
        return 2 * self.cores * self.boost_mhz / 1e6

    @property
    def fp16_tflops(self) -> float:
        """Dense FP16 peak with FP16 sums, on tensor cores where there are any."""
        return self.fp32_tflops * self._rates[0]

    @property
    def int8_tops(self) -> float:
        """Dense INT8 peak."""
        return self.fp32_tflops * self._rates[1]

    @property
    def _rates(self) -> tuple[float, float]:
        return _NO_TENSOR_CORES if self.name.startswith("GTX 16") else _RATES[self.sm]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What still supports a compute capability."""

    tensorrt: str
    """Newest TensorRT."""
    cuda: str
    """Newest CUDA toolkit."""
    driver: str
    """Newest driver branch."""
    python: str
    """Newest Python with wheels of that TensorRT."""
    runs_rtx: bool
    """Whether TensorRT-RTX runs on it."""
    source: str
    """Where this is written."""


# Compute capability -> FP16 and INT8 rate over FP32, dense, FP16 sums. Sources: CUDA C++ Programming Guide,
# "Throughput of Native Arithmetic Instructions" (6.1: FP16 1/64, DP4A 4x), and NVIDIA's architecture papers:
# Volta and Turing 8x FP16, Turing 16x INT8; GA100 16x, 32x; GH100 989 TFLOPS and 1979 TOPS beside 67; GA10x,
# AD10x and GB20x 4x and 8x of their doubled FP32; Orin 8x and 16x. GTX 16xx have no tensor cores: 2x and 4x.
_NO_TENSOR_CORES = (2.0, 4.0)
_RATES: Mapping[Sm, tuple[float, float]] = MappingProxyType(
    {
        (6, 1): (1 / 64, 4),
        (7, 0): (8, 4),
        (7, 5): (8, 16),
        (8, 0): (16, 32),
        (8, 6): (4, 8),
        (8, 7): (8, 16),
        (8, 9): (4, 8),
        (9, 0): (14.8, 29.6),
        (12, 0): (4, 8),
    }
)


def _gpu(
    name: str, sm: Sm, cores: int, boost_mhz: int, bandwidth_gb_s: float, memory_gb: float
) -> Target:
    return Target(
        name=name,
        sm=sm,
        cores=cores,
        boost_mhz=boost_mhz,
        bandwidth_gb_s=bandwidth_gb_s,
        memory_gb=memory_gb,
    )


# Cores, boost clock, bandwidth, memory. Source: NVIDIA's product page or datasheet of each card.
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            _gpu("GTX 1060", (6, 1), 1280, 1708, 192.2, 6),
            _gpu("GTX 1070", (6, 1), 1920, 1683, 256.3, 8),
            _gpu("GTX 1070 Ti", (6, 1), 2432, 1683, 256.3, 8),
            _gpu("GTX 1080", (6, 1), 2560, 1733, 320.3, 8),
            _gpu("GTX 1080 Ti", (6, 1), 3584, 1582, 484.4, 11),
            _gpu("Titan Xp", (6, 1), 3840, 1582, 547.6, 12),
            _gpu("GTX 1650", (7, 5), 896, 1665, 128, 4),
            _gpu("GTX 1650 Super", (7, 5), 1280, 1725, 192, 4),
            _gpu("GTX 1660", (7, 5), 1408, 1785, 192, 6),
            _gpu("GTX 1660 Super", (7, 5), 1408, 1785, 336, 6),
            _gpu("GTX 1660 Ti", (7, 5), 1536, 1770, 288, 6),
            _gpu("RTX 2060", (7, 5), 1920, 1680, 336, 6),
            _gpu("RTX 2070", (7, 5), 2304, 1620, 448, 8),
            _gpu("RTX 2080", (7, 5), 2944, 1710, 448, 8),
            _gpu("RTX 2080 Ti", (7, 5), 4352, 1545, 616, 11),
            _gpu("Titan RTX", (7, 5), 4608, 1770, 672, 24),
            _gpu("RTX 3050", (8, 6), 2560, 1777, 224, 8),
            _gpu("RTX 3060", (8, 6), 3584, 1777, 360, 12),
            _gpu("RTX 3060 Ti", (8, 6), 4864, 1665, 448, 8),
            _gpu("RTX 3070", (8, 6), 5888, 1725, 448, 8),
            _gpu("RTX 3080", (8, 6), 8704, 1710, 760, 10),
            _gpu("RTX 3090", (8, 6), 10496, 1695, 936, 24),
            _gpu("RTX 4060", (8, 9), 3072, 2460, 272, 8),
            _gpu("RTX 4060 Ti", (8, 9), 4352, 2535, 288, 8),
            _gpu("RTX 4070", (8, 9), 5888, 2475, 504, 12),
            _gpu("RTX 4080", (8, 9), 9728, 2505, 717, 16),
            _gpu("RTX 4090", (8, 9), 16384, 2520, 1008, 24),
            _gpu("RTX 5060", (12, 0), 3840, 2497, 448, 8),
            _gpu("RTX 5060 Ti", (12, 0), 4608, 2572, 448, 16),
            _gpu("RTX 5070", (12, 0), 6144, 2512, 672, 12),
            _gpu("RTX 5070 Ti", (12, 0), 8960, 2452, 896, 16),
            _gpu("RTX 5080", (12, 0), 10752, 2617, 960, 16),
            _gpu("RTX 5090", (12, 0), 21760, 2407, 1792, 32),
            _gpu("V100", (7, 0), 5120, 1530, 900, 16),
            _gpu("T4", (7, 5), 2560, 1590, 320, 16),
            _gpu("L4", (8, 9), 7424, 2040, 300, 24),
            _gpu("L40S", (8, 9), 18176, 2520, 864, 48),
            _gpu("A10", (8, 6), 9216, 1695, 600, 24),
            _gpu("A100", (8, 0), 6912, 1410, 2039, 80),
            _gpu("H100 PCIe", (9, 0), 14592, 1755, 2000, 80),
            _gpu("H100", (9, 0), 16896, 1980, 3350, 80),
            _gpu("H200", (9, 0), 16896, 1980, 4800, 141),
            _gpu("Jetson AGX Orin", (8, 7), 2048, 1300, 204.8, 64),
            _gpu("Jetson Orin NX", (8, 7), 1024, 918, 102.4, 16),
            _gpu("Jetson Orin Nano", (8, 7), 1024, 1020, 102.4, 8),
        )
    }
)

# Sources: TensorRT release notes and support matrices (8.6.1: CUDA 11.0-12.1; 10.0 refuses SM 6.1, 10.5 drops
# 7.0; 11.4: Turing and later, Python 3.10-3.14), NVIDIA's driver matrix (R580 is Pascal's and
# Volta's last branch), the ComputeCapability enum of TensorRT-RTX 1.7.
_NEWEST = {"tensorrt": "11.4", "cuda": "13", "driver": "newest", "python": "3.14"}
_LIMITS: Mapping[Sm, Limits] = MappingProxyType(
    {
        (6, 1): Limits(
            tensorrt="8.6.1",
            cuda="12",
            driver="R580",
            python="3.11",
            runs_rtx=False,
            source="TensorRT 8.6.1 support matrix; NVIDIA/TensorRT issue 3826",
        ),
        (7, 0): Limits(
            tensorrt="10.4",
            cuda="12",
            driver="R580",
            python="3.12",
            runs_rtx=False,
            source="TensorRT 10.5 release notes",
        ),
        **{
            sm: Limits(**_NEWEST, runs_rtx=rtx, source="TensorRT 11.4 prerequisites; RTX 1.7 enum")
            for sm, rtx in {
                (7, 5): True,
                (8, 0): True,
                (8, 6): True,
                (8, 7): False,
                (8, 9): True,
                (9, 0): False,
                (12, 0): True,
            }.items()
        },
    }
)


def target_named(text: str) -> Target:
    """Find a GPU by name, however it is written: ``RTX 3060``, ``rtx3060``, ``NVIDIA GeForce RTX 3060``.

    Raises:
        InvalidInput: Unknown; the hint has the names that come near.
    """
    wanted = _squeezed(text)
    names = {_squeezed(name): name for name in TARGETS}
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        raise InvalidInput(
            f"unknown GPU {text!r}",
            hint=f"near: {', '.join(names[name] for name in near)}" if near else "or give sm_86",
        )
    return TARGETS[names[wanted]]


def sm_of(text: str) -> Sm:
    """Read a compute capability, ``sm_86``, ``8.6`` or ``86``, or that of a GPU by name.

    Raises:
        InvalidInput: Neither.
    """
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2}?)\.?(\d)", text.strip().lower())
    return (int(match[1]), int(match[2])) if match else target_named(text).sm


def gpus_at_hand() -> tuple[tuple[str, Sm], ...]:
    """Get name and compute capability of the GPUs of this machine.

    Raises:
        InvalidInput: The driver does not tell the capability, and the name is not in the table.
    """
    names = [line.partition(",")[0].strip() for line in nvidia_gpus()]
    capabilities = gpu_capabilities()
    texts = capabilities if len(capabilities) == len(names) else tuple(names)
    return tuple((name, sm_of(text)) for name, text in zip(names, texts, strict=True))


def limits_of(sm: Sm) -> Limits:
    """Get what still supports a compute capability; one newer than the table is supported by the newest."""
    known = [entry for entry in _LIMITS if entry <= sm]
    return _LIMITS[max(known)] if known else _LIMITS[(6, 1)]


def advice_for(sm: Sm, precision: str) -> str | None:
    """Say in one line why a precision is a poor choice on a GPU; ``None`` where it is a good one."""
    if precision == "fp16" and sm == (6, 1):
        return "FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8 or FP32"
    return None


def support_text(name: str, sm: Sm) -> str:
    """Say in a line what still supports a GPU, what to avoid on it, and what to install."""
    limits = limits_of(sm)
    rtx = ", or TensorRT for RTX: pip install 'esnet-deploy[rtx]'" if limits.runs_rtx else ""
    if sm == (6, 1):
        install = "pip install -r requirements-gtx10xx.txt (docs/gtx-1080-ti.md)"
    elif sm < (7, 5):
        install = f"pip install 'tensorrt-cu12=={limits.tensorrt}.*'"
    else:
        install = "pip install 'esnet-deploy[gpu]'"
    advice = advice_for(sm, "fp16")
    bounds = f"TensorRT {limits.tensorrt} at most, Python {limits.python} at most"
    return f"{name} (SM {sm[0]}.{sm[1]}): {bounds}; {f'{advice}; ' if advice else ''}{install}{rtx}"


def _squeezed(text: str) -> str:
    """Lower case, without spaces and without the maker's words; memory sizes after the name are dropped."""
    words = re.sub(r"nvidia|geforce|tesla|\d+\s*gb|[\s_-]", "", text.lower())
    return re.sub(r"(?:80gb)?(?:hbm\d\w?)?$", "", words).removesuffix("sxm5").removesuffix("sxm4")
