"""The GPUs that people own: what each computes and moves, and which TensorRT, CUDA and Python support it.

Peaks are products of published numbers: cores x boost clock x operations a clock. They bound a roofline; no
card holds its boost clock for long.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from runtime.errors import InvalidInput
from runtime.machine.machine import nvidia_cards

Sm = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSpec:
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
    source: str
    """Where cores, clock, bandwidth and memory are published."""

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
    """Newest driver branch; ``newest`` where no end is announced."""
    python: str
    """Newest Python with wheels of that TensorRT."""
    runs_rtx: bool
    """Whether TensorRT-RTX runs on it."""
    source: str
    """Where this is written."""
    note: str = ""
    """What the reader should know besides; may be empty."""

    @property
    def is_final(self) -> bool:
        """Whether newer software has left these GPUs behind."""
        return self.driver != _NEWEST["driver"]


# Compute capability -> FP16 and INT8 rate over FP32, dense, FP16 sums. Sources: CUDA C++ Programming Guide,
# "Throughput of Native Arithmetic Instructions" (6.1: 2 FP16 results a clock beside 128 FP32, and DP4A, four
# INT8 MACs an instruction), and NVIDIA's architecture papers: Volta and Turing 8x FP16, Turing 16x INT8;
# GA100 16x, 32x; GH100 989 TFLOPS and 1979 TOPS beside 67; GA10x, AD10x and GB20x 4x and 8x of their doubled
# FP32; Orin 8x and 16x. GTX 16xx have no tensor cores: 2x and 4x.
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


def _gpus(
    sm: Sm, source: str, *rows: tuple[str, int, int, float, float]
) -> Iterator[tuple[str, GpuSpec]]:
    """Make the targets of one family from (name, cores, boost MHz, GB/s, GB)."""
    for name, cores, boost_mhz, bandwidth_gb_s, memory_gb in rows:
        yield (
            name,
            GpuSpec(
                name=name,
                sm=sm,
                cores=cores,
                boost_mhz=boost_mhz,
                bandwidth_gb_s=bandwidth_gb_s,
                memory_gb=memory_gb,
                source=source,
            ),
        )


# Reference clocks, not the factory-overclocked ones. Jetson Orin Nano in its 25 W ("Super") mode.
GPUS: Mapping[str, GpuSpec] = MappingProxyType(
    dict(
        [
            *_gpus(
                (6, 1),
                "NVIDIA product pages, GeForce 10 series and Titan Xp; GTX 1070, 1080 and 1080 Ti also "
                "https://www.bit-tech.net/features/tech/graphics/nvidias-turing-architecture-explained/1/",
                ("GTX 1060", 1280, 1708, 192.2, 6),
                ("GTX 1060 3GB", 1152, 1708, 192.2, 3),
                ("GTX 1070", 1920, 1683, 256.3, 8),
                ("GTX 1070 Ti", 2432, 1683, 256.3, 8),
                ("GTX 1080", 2560, 1733, 320.3, 8),
                ("GTX 1080 Ti", 3584, 1582, 484.4, 11),
                ("Titan Xp", 3840, 1582, 547.6, 12),
            ),
            *_gpus(
                (7, 5),
                "NVIDIA product pages, GeForce 16 series; "
                "https://www.guru3d.com/review/gigabyte-gtx-1660-super-gaming-oc-review/page-5/",
                ("GTX 1650", 896, 1665, 128, 4),
                ("GTX 1650 Super", 1280, 1725, 192, 4),
                ("GTX 1660", 1408, 1785, 192, 6),
                ("GTX 1660 Super", 1408, 1785, 336, 6),
                ("GTX 1660 Ti", 1536, 1770, 288, 6),
            ),
            *_gpus(
                (7, 5),
                "NVIDIA Turing GPU Architecture (WP-09183-001), reference clocks; RTX 2060: product page; "
                "https://www.bit-tech.net/features/tech/graphics/nvidias-turing-architecture-explained/1/",
                ("RTX 2060", 1920, 1680, 336, 6),
                ("RTX 2070", 2304, 1620, 448, 8),
                ("RTX 2080", 2944, 1710, 448, 8),
                ("RTX 2080 Ti", 4352, 1545, 616, 11),
                ("Titan RTX", 4608, 1770, 672, 24),
            ),
            *_gpus(
                (8, 6),
                "NVIDIA Ampere GA102 GPU Architecture and product pages, GeForce 30 series; "
                "https://www.nvidia.com/en-in/geforce/news/introducing-rtx-30-series-graphics-cards/",
                ("RTX 3050", 2560, 1777, 224, 8),
                ("RTX 3060", 3584, 1777, 360, 12),
                ("RTX 3060 Ti", 4864, 1665, 448, 8),
                ("RTX 3070", 5888, 1725, 448, 8),
                ("RTX 3080", 8704, 1710, 760, 10),
                ("RTX 3090", 10496, 1695, 936, 24),
            ),
            *_gpus(
                (8, 9),
                "NVIDIA Ada GPU Architecture and product pages, GeForce 40 series",
                ("RTX 4060", 3072, 2460, 272, 8),
                ("RTX 4060 Ti", 4352, 2535, 288, 8),
                ("RTX 4070", 5888, 2475, 504, 12),
                ("RTX 4080", 9728, 2505, 717, 16),
                ("RTX 4090", 16384, 2520, 1008, 24),
            ),
            *_gpus(
                (12, 0),
                "NVIDIA RTX Blackwell GPU Architecture and product pages, GeForce 50 series; "
                "https://www.tweaktown.com/news/102469/"
                "nvidia-geforce-rtx-50-series-specs-pricing-and-performance-plan-that-upgrade-today/index.html",
                ("RTX 5060", 3840, 2497, 448, 8),
                ("RTX 5060 Ti", 4608, 2572, 448, 16),
                ("RTX 5070", 6144, 2512, 672, 12),
                ("RTX 5070 Ti", 8960, 2452, 896, 16),
                ("RTX 5080", 10752, 2617, 960, 16),
                ("RTX 5090", 21760, 2407, 1792, 32),
            ),
            *_gpus(
                (7, 0),
                "NVIDIA Tesla V100 GPU Architecture (WP-08608-001), SXM2",
                ("V100", 5120, 1530, 900, 16),
            ),
            *_gpus((7, 5), "NVIDIA T4 datasheet", ("T4", 2560, 1590, 320, 16)),
            *_gpus((8, 6), "NVIDIA A10 datasheet", ("A10", 9216, 1695, 600, 24)),
            *_gpus(
                (8, 0),
                "NVIDIA A100 datasheet, SXM4",
                ("A100", 6912, 1410, 2039, 80),
                ("A100 40GB", 6912, 1410, 1555, 40),
            ),
            *_gpus(
                (8, 9),
                "NVIDIA L4 and L40S datasheets",
                ("L4", 7424, 2040, 300, 24),
                ("L40S", 18176, 2520, 864, 48),
            ),
            *_gpus(
                (9, 0),
                "NVIDIA H100 and H200 datasheets; clocks: https://glennklockwood.com/garden/processors/h100",
                ("H100", 16896, 1980, 3350, 80),
                ("H100 PCIe", 14592, 1755, 2000, 80),
                ("H200", 16896, 1980, 4800, 141),
            ),
            *_gpus(
                (8, 7),
                "NVIDIA Jetson AGX Orin Series technical brief, Orin NX and Orin Nano Super datasheets",
                ("Jetson AGX Orin", 2048, 1300, 204.8, 64),
                ("Jetson Orin NX", 1024, 918, 102.4, 16),
                ("Jetson Orin Nano", 1024, 1020, 102.4, 8),
            ),
        ]
    )
)

_MATRIX = (
    "docs.nvidia.com/datacenter/tesla/drivers/cuda-toolkit-driver-and-architecture-matrix.html"
)
_TENSORRT = "docs.nvidia.com/deeplearning/tensorrt"
_PREREQUISITES = f"{_TENSORRT}/11.4.0/installing-tensorrt/prerequisites.html"
_NEWEST = {"tensorrt": "11.4", "cuda": "13", "driver": "newest", "python": "3.14"}
_PASCAL = Limits(
    tensorrt="8.6.1",
    cuda="12",
    driver="R580",
    python="3.11",
    runs_rtx=False,
    source=f"{_TENSORRT}/archives/tensorrt-1010/support-matrix (SM 7.0 or higher); "
    f"NVIDIA/TensorRT issue 3826; {_MATRIX}; wheels of tensorrt_bindings 8.6.1",
)
_CURRENT = Limits(
    **_NEWEST, runs_rtx=True, source=f"{_PREREQUISITES}; ComputeCapability enum of TensorRT-RTX 1.7"
)
_NO_RTX = replace(_CURRENT, runs_rtx=False)
_LIMITS: Mapping[Sm, Limits] = MappingProxyType(
    {
        (6, 0): _PASCAL,
        (6, 1): _PASCAL,
        (7, 0): Limits(
            tensorrt="10.4",
            cuda="12",
            driver="R580",
            python="3.12",
            runs_rtx=False,
            source=f"{_TENSORRT}/latest/getting-started/release-notes-10/10.5.0.html; {_MATRIX}; "
            "wheels of tensorrt-cu12-bindings 10.4.0",
        ),
        (7, 5): _CURRENT,
        (8, 0): replace(
            _CURRENT, note="TensorRT-RTX builds for SM 8.0, but its support matrix does not list it"
        ),
        (8, 6): _CURRENT,
        (8, 7): replace(
            _NO_RTX,
            source=f"{_TENSORRT}/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
            note="TensorRT 11.4 from JetPack 7.2.2 on, on AGX Orin; JetPack 6 stays with its TensorRT 10",
        ),
        (8, 9): _CURRENT,
        (9, 0): _NO_RTX,
        (10, 0): _NO_RTX,
        (12, 0): _CURRENT,
        (12, 1): _CURRENT,
    }
)


def gpu_named(text: str) -> GpuSpec:
    """Find a GPU by name, however it is written: ``RTX 3060``, ``rtx3060``, ``NVIDIA GeForce RTX 3060``.

    Raises:
        InvalidInput: Unknown; the hint has the names that come near.
    """
    names = {_squeezed(name): name for name in GPUS}
    for spelling in _spellings(text):
        if spelling in names:
            return GPUS[names[spelling]]
    near = difflib.get_close_matches(_squeezed(text), names, n=3, cutoff=0.5)
    meant = ", ".join(names[name] for name in near)
    raise InvalidInput(
        f"unknown GPU {text!r}", hint=f"near: {meant}" if meant else "for example 'RTX 3060'"
    )


def targets_with_sm(sm: Sm) -> tuple[GpuSpec, ...]:
    """List the GPUs of a compute capability; empty where the table has none."""
    return tuple(target for target in GPUS.values() if target.sm == sm)


def sm_of(text: str) -> Sm:
    """Read a compute capability, ``sm_86``, ``8.6`` or ``86``, or that of a GPU by name.

    Raises:
        InvalidInput: Neither.
    """
    match = re.fullmatch(r"(?:sm[ _]?)?([1-9]\d??)\.?(\d)", text.strip().lower())
    if match:
        return int(match[1]), int(match[2])
    try:
        return gpu_named(text).sm
    except InvalidInput as error:
        hint = f"{error.hint}, or a compute capability such as sm_86"
        raise InvalidInput(str(error), hint=hint) from None


def gpus_at_hand() -> tuple[tuple[str, Sm], ...]:
    """Get name and compute capability of the GPUs of this machine.

    Raises:
        InvalidInput: The driver does not tell the capability, and the name is not in the table.
    """
    return tuple(
        (card.name, sm_of(card.compute_capability or card.name)) for card in nvidia_cards()
    )


def limits_of(sm: Sm) -> Limits:
    """Get what still supports a compute capability; one that is not in the table has its neighbour's."""
    if sm in _LIMITS:
        return _LIMITS[sm]
    nearest = max((known for known in _LIMITS if known < sm), default=min(_LIMITS))
    note = f"SM {sm_text(sm)} is not in our table: this is what holds for SM {sm_text(nearest)}"
    return replace(_LIMITS[nearest], note=note)


def advice_for(sm: Sm, precision: str) -> str | None:
    """Say in one line why a precision is a poor choice on a GPU; ``None`` where it is a good one."""
    return _ADVICE.get((sm, precision))


# Sources: see _RATES; PTX ISA (dp4a needs sm_61); "TX2 doesn't support INT8 operation", NVIDIA on
# forums.developer.nvidia.com/t/55481. SM 7.0 has DP4A alone: half the rate of its FP16 tensor cores.
_ADVICE: Mapping[tuple[Sm, str], str] = MappingProxyType(
    {
        ((6, 0), "int8"): "SM 6.0 has no INT8 instructions: use FP16 or FP32",
        ((6, 1), "fp16"): "FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8 or FP32",
        ((6, 2), "int8"): "TensorRT has no INT8 for SM 6.2: use FP16 or FP32",
        ((7, 0), "int8"): "SM 7.0 has no INT8 tensor cores, FP16 is twice as fast: use FP16",
    }
)


def sm_text(sm: Sm) -> str:
    """Write a compute capability as NVIDIA does, ``8.6``."""
    return f"{sm[0]}.{sm[1]}"


def _squeezed(text: str) -> str:
    """Lower case, letters and digits alone, without the maker's words, the socket and the kind of memory."""
    words = re.sub(r"nvidia|geforce|tesla|jetson|sxm\d?|hbm\d?e?", "", text.lower())
    return re.sub(r"[^a-z0-9]", "", words)


def _spellings(text: str) -> Iterator[str]:
    """Yield the keys a name may stand under, the most telling first; memory and bus may say nothing new."""
    words = re.sub(r"[\s_-]+", " ", text.lower())
    for sized in (words, re.sub(r"\b\d+ ?gb\b", "", words)):
        for plain in (sized, sized.replace("pcie", "")):
            key = _squeezed(plain)
            yield from (key, f"gtx{key}", f"rtx{key}")
