"""Specifications of common NVIDIA GPUs, looked up by name, and compute capabilities.

Peaks are cores x boost clock x operations per clock, from published figures. They are upper bounds for a
roofline: no GPU holds its boost clock for long.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.errors import InvalidInput
from runtime.machine.machine import NvidiaGpu, nvidia_gpus

Sm = tuple[int, int]


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Published figures of a GPU."""

    name: str
    """Name, without "NVIDIA" and "GeForce"."""
    sm: Sm
    """Compute capability."""
    cores: int
    """FP32 lanes ("CUDA cores")."""
    boost_mhz: int
    """Boost clock."""
    bandwidth_gb_s: float
    """Memory bandwidth, 1e9 bytes per second."""
    memory_gb: float
    """Memory size."""
    source: str
    """Publication of cores, clock, bandwidth and memory size."""

    @property
    def fp32_tflops(self) -> float:
        """FP32 peak: two operations per core and clock."""
        return 2 * self.cores * self.boost_mhz / 1e6

    @property
    def fp16_tflops(self) -> float:
        """Dense FP16 peak with FP16 accumulation, on tensor cores if there are any."""
        return self.fp32_tflops * self._rates[0]

    @property
    def int8_tops(self) -> float:
        """Dense INT8 peak."""
        return self.fp32_tflops * self._rates[1]

    @property
    def _rates(self) -> tuple[float, float]:
        return (2, 4) if self.name.startswith("GTX 16") else _RATES[self.sm]


# Compute capability -> FP16 and INT8 rate over FP32, dense, FP16 accumulation. Sources: CUDA C++ Programming
# Guide, "Throughput of Native Arithmetic Instructions" (6.1: 2 FP16 results per clock beside 128 FP32, and
# DP4A, four INT8 MACs per instruction), and NVIDIA's architecture papers: Volta and Turing 8x FP16, Turing
# 16x INT8; GA100 16x, 32x; GH100 989 TFLOPS and 1979 TOPS beside 67; GA10x, AD10x and GB20x 4x and 8x of
# their doubled FP32; Orin 8x and 16x. GTX 16xx have no tensor cores: 2x and 4x.
_RATES: dict[Sm, tuple[float, float]] = {
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

_TURING = "https://www.bit-tech.net/features/tech/graphics/nvidias-turing-architecture-explained/1/"
_GTX_10 = f"NVIDIA product pages, GeForce 10 series and Titan Xp; 1070, 1080, 1080 Ti: {_TURING}"
_GTX_16 = (
    "NVIDIA product pages, GeForce 16 series; "
    "https://www.guru3d.com/review/gigabyte-gtx-1660-super-gaming-oc-review/page-5/"
)
_RTX_20 = f"NVIDIA Turing GPU Architecture (WP-09183-001); RTX 2060: product page; {_TURING}"
_RTX_30 = (
    "NVIDIA Ampere GA102 GPU Architecture and product pages, GeForce 30 series; "
    "https://www.nvidia.com/en-in/geforce/news/introducing-rtx-30-series-graphics-cards/"
)
_RTX_40 = "NVIDIA Ada GPU Architecture and product pages, GeForce 40 series"
_RTX_50 = (
    "NVIDIA RTX Blackwell GPU Architecture and product pages, GeForce 50 series; "
    "https://www.tweaktown.com/news/102469/"
    "nvidia-geforce-rtx-50-series-specs-pricing-and-performance-plan-that-upgrade-today/index.html"
)
_V100 = "NVIDIA Tesla V100 GPU Architecture (WP-08608-001), SXM2"
_A100 = "NVIDIA A100 datasheet, SXM4"
_ADA = "NVIDIA L4 and L40S datasheets"
_HOPPER = "NVIDIA H100, H200 datasheets; clocks: https://glennklockwood.com/garden/processors/h100"
_ORIN = "NVIDIA Jetson AGX Orin Series technical brief, Orin NX and Orin Nano Super datasheets"

# Name, compute capability, cores, boost MHz, GB/s, GB. Reference clocks, not factory-overclocked ones. Jetson
# Orin Nano in its 25 W ("Super") mode.
GPUS: dict[str, GpuSpec] = {
    spec.name: spec
    for spec in (
        GpuSpec("GTX 1060", (6, 1), 1280, 1708, 192.2, 6, _GTX_10),
        GpuSpec("GTX 1060 3GB", (6, 1), 1152, 1708, 192.2, 3, _GTX_10),
        GpuSpec("GTX 1070", (6, 1), 1920, 1683, 256.3, 8, _GTX_10),
        GpuSpec("GTX 1070 Ti", (6, 1), 2432, 1683, 256.3, 8, _GTX_10),
        GpuSpec("GTX 1080", (6, 1), 2560, 1733, 320.3, 8, _GTX_10),
        GpuSpec("GTX 1080 Ti", (6, 1), 3584, 1582, 484.4, 11, _GTX_10),
        GpuSpec("Titan Xp", (6, 1), 3840, 1582, 547.6, 12, _GTX_10),
        GpuSpec("GTX 1650", (7, 5), 896, 1665, 128, 4, _GTX_16),
        GpuSpec("GTX 1650 Super", (7, 5), 1280, 1725, 192, 4, _GTX_16),
        GpuSpec("GTX 1660", (7, 5), 1408, 1785, 192, 6, _GTX_16),
        GpuSpec("GTX 1660 Super", (7, 5), 1408, 1785, 336, 6, _GTX_16),
        GpuSpec("GTX 1660 Ti", (7, 5), 1536, 1770, 288, 6, _GTX_16),
        GpuSpec("RTX 2060", (7, 5), 1920, 1680, 336, 6, _RTX_20),
        GpuSpec("RTX 2070", (7, 5), 2304, 1620, 448, 8, _RTX_20),
        GpuSpec("RTX 2080", (7, 5), 2944, 1710, 448, 8, _RTX_20),
        GpuSpec("RTX 2080 Ti", (7, 5), 4352, 1545, 616, 11, _RTX_20),
        GpuSpec("Titan RTX", (7, 5), 4608, 1770, 672, 24, _RTX_20),
        GpuSpec("RTX 3050", (8, 6), 2560, 1777, 224, 8, _RTX_30),
        GpuSpec("RTX 3060", (8, 6), 3584, 1777, 360, 12, _RTX_30),
        GpuSpec("RTX 3060 Ti", (8, 6), 4864, 1665, 448, 8, _RTX_30),
        GpuSpec("RTX 3070", (8, 6), 5888, 1725, 448, 8, _RTX_30),
        GpuSpec("RTX 3080", (8, 6), 8704, 1710, 760, 10, _RTX_30),
        GpuSpec("RTX 3090", (8, 6), 10496, 1695, 936, 24, _RTX_30),
        GpuSpec("RTX 4060", (8, 9), 3072, 2460, 272, 8, _RTX_40),
        GpuSpec("RTX 4060 Ti", (8, 9), 4352, 2535, 288, 8, _RTX_40),
        GpuSpec("RTX 4070", (8, 9), 5888, 2475, 504, 12, _RTX_40),
        GpuSpec("RTX 4080", (8, 9), 9728, 2505, 717, 16, _RTX_40),
        GpuSpec("RTX 4090", (8, 9), 16384, 2520, 1008, 24, _RTX_40),
        GpuSpec("RTX 5060", (12, 0), 3840, 2497, 448, 8, _RTX_50),
        GpuSpec("RTX 5060 Ti", (12, 0), 4608, 2572, 448, 16, _RTX_50),
        GpuSpec("RTX 5070", (12, 0), 6144, 2512, 672, 12, _RTX_50),
        GpuSpec("RTX 5070 Ti", (12, 0), 8960, 2452, 896, 16, _RTX_50),
        GpuSpec("RTX 5080", (12, 0), 10752, 2617, 960, 16, _RTX_50),
        GpuSpec("RTX 5090", (12, 0), 21760, 2407, 1792, 32, _RTX_50),
        GpuSpec("V100", (7, 0), 5120, 1530, 900, 16, _V100),
        GpuSpec("T4", (7, 5), 2560, 1590, 320, 16, "NVIDIA T4 datasheet"),
        GpuSpec("A10", (8, 6), 9216, 1695, 600, 24, "NVIDIA A10 datasheet"),
        GpuSpec("A100", (8, 0), 6912, 1410, 2039, 80, _A100),
        GpuSpec("A100 40GB", (8, 0), 6912, 1410, 1555, 40, _A100),
        GpuSpec("L4", (8, 9), 7424, 2040, 300, 24, _ADA),
        GpuSpec("L40S", (8, 9), 18176, 2520, 864, 48, _ADA),
        GpuSpec("H100", (9, 0), 16896, 1980, 3350, 80, _HOPPER),
        GpuSpec("H100 PCIe", (9, 0), 14592, 1755, 2000, 80, _HOPPER),
        GpuSpec("H200", (9, 0), 16896, 1980, 4800, 141, _HOPPER),
        GpuSpec("Jetson AGX Orin", (8, 7), 2048, 1300, 204.8, 64, _ORIN),
        GpuSpec("Jetson Orin NX", (8, 7), 1024, 918, 102.4, 16, _ORIN),
        GpuSpec("Jetson Orin Nano", (8, 7), 1024, 1020, 102.4, 8, _ORIN),
    )
}


def gpu_named(text: str) -> GpuSpec:
    """Find a GPU by name in any spelling: ``RTX 3060``, ``rtx3060``, ``NVIDIA GeForce RTX 3060``.

    Raises:
        InvalidInput: Unknown name; the hint lists similar names.
    """
    names = {_squeezed(name): name for name in GPUS}
    for spelling in _spellings(text):
        if spelling in names:
            return GPUS[names[spelling]]
    similar = difflib.get_close_matches(_squeezed(text), names, n=3, cutoff=0.5)
    found = ", ".join(names[name] for name in similar)
    raise InvalidInput(
        f"unknown GPU {text!r}", hint=f"similar: {found}" if found else "for example 'RTX 3060'"
    )


def sm_of(text: str) -> Sm:
    """Parse a compute capability, ``sm_86``, ``8.6`` or ``86``, or look up that of a GPU by name.

    Raises:
        InvalidInput: Neither a compute capability nor a known GPU.
    """
    match = re.fullmatch(r"(?:sm[ _]?)?([1-9]|1\d)\.?(\d)", text.strip().lower())
    if match:
        return int(match[1]), int(match[2])
    try:
        return gpu_named(text).sm
    except InvalidInput as error:
        hint = f"{error.hint}, or a compute capability such as sm_86"
        raise InvalidInput(str(error), hint=hint) from None


def sm_text(sm: Sm) -> str:
    """Format a compute capability as NVIDIA does, ``8.6``."""
    return f"{sm[0]}.{sm[1]}"


def parse_device(device: str | int) -> int:
    """Get CUDA's number of a GPU: ``cuda:1``, ``1`` and 1 are the second, ``cuda`` is the first.

    Raises:
        InvalidInput: Another format.
    """
    match = re.fullmatch(r"(?:cuda:)?(\d+)|cuda", str(device).strip().lower())
    if match is None:
        raise InvalidInput(f"device {device!r} is no GPU", hint="for example cuda:1, or 1")
    return int(match[1] or 0)


def gpu_at(gpus: Sequence[NvidiaGpu], device: str | int) -> NvidiaGpu:
    """Choose the GPU of ``device``, see ``parse_device``, from ``nvidia_gpus()``.

    Raises:
        InvalidInput: CUDA does not list it.
    """
    index, listed = parse_device(device), [gpu for gpu in gpus if gpu.index is not None]
    if index >= len(listed):
        raise no_such_gpu(index, len(listed))
    return listed[index]


def no_such_gpu(index: int, num_gpus: int, *, library: str = "CUDA") -> InvalidInput:
    """Make the error of a number that CUDA, or another library, does not list."""
    return InvalidInput(
        f"no GPU cuda:{index}: {library} lists {num_gpus or 'none'}",
        hint="esnet-doctor lists the GPUs; CUDA_VISIBLE_DEVICES hides some",
    )


def cuda_gpu(device: str | int | None = None) -> tuple[str, Sm] | None:
    """Look up a GPU of this machine.

    Args:
        device: As for ``parse_device``; ``None`` takes CUDA's first, or NVML's first.

    Returns:
        Name and compute capability; ``None`` if no device was given and there is no GPU.

    Raises:
        InvalidInput: CUDA does not list the GPU, or NVML does not know its compute capability, and its name
            is not in ``GPUS``.
    """
    gpus = nvidia_gpus()
    gpu = next(iter(gpus), None) if device is None else gpu_at(gpus, device)
    return None if gpu is None else (gpu.name, sm_of(gpu.compute_capability or gpu.name))


def _squeezed(text: str) -> str:
    """Reduce to lower-case letters and digits, without brand names, socket and memory type."""
    words = re.sub(r"nvidia|geforce|tesla|jetson|sxm\d?|hbm\d?e?", "", text.lower())
    return re.sub(r"[^a-z0-9]", "", words)


def _spellings(text: str) -> Iterator[str]:
    """Yield the table keys that a name may stand for: first with memory size and bus, then without."""
    words = re.sub(r"[\s_-]+", " ", text.lower())
    for sized in (words, re.sub(r"\b\d+ ?gb\b", "", words)):
        for plain in (sized, sized.replace("pcie", "")):
            key = _squeezed(plain)
            yield from (key, f"gtx{key}", f"rtx{key}")
