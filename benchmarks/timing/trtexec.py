"""Our figures as trtexec defines its own, and trtexec itself beside them where it is installed.

What trtexec calls latency changed: up to TensorRT 10 it is copy in, compute and copy out by events, without
CUDA graphs; from 11 on compute alone, with graphs. Source: samples/common/sampleReporting.cpp and
sampleOptions.cpp of the TensorRT repository.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.errors import BenchmarkError
from runtime.artefact.card import ModelCard

TRTEXEC_10, TRTEXEC_11 = "trtexec10", "trtexec11"
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        TRTEXEC_10: "H2D + compute + D2H by events, blocking wait, no CUDA graph (trtexec up to 10)",
        TRTEXEC_11: "compute alone by events, spinning wait, CUDA graph (trtexec from 11 on)",
    }
)
# What makes trtexec of a major version measure by a preset's definition; each version knows only its own.
_FLAGS: Mapping[tuple[str, int], tuple[str, ...]] = MappingProxyType(
    {
        (TRTEXEC_10, 10): (),
        (TRTEXEC_10, 11): ("--includeDataTransfers", "--noCudaGraph", "--noSpinWait"),
        (TRTEXEC_11, 10): ("--noDataTransfers", "--useCudaGraph", "--useSpinWait"),
        (TRTEXEC_11, 11): (),
    }
)
_LINE = re.compile(
    r"\[I\] (?P<name>Latency|GPU Compute Time|H2D Latency|D2H Latency): .*?median = (?P<ms>[\d.]+) ms"
)
_QPS = re.compile(r"\[I\] Throughput: (?P<qps>[\d.]+) qps")
_VERSION = re.compile(r"TensorRT[ .]v?(?P<digits>\d{4,6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrtexecResult:
    """What trtexec measured."""

    preset: str
    """Definition it was made to use."""
    latency_ms: float
    """Its median latency."""
    compute_ms: float
    """Its median time of the kernels."""
    qps: float
    """Batches a second."""
    command: str
    """What was run."""


def require_preset(preset: str | None) -> None:
    """Refuse an unknown preset.

    Raises:
        BenchmarkError: With those there are.
    """
    if preset is not None and preset not in PRESETS:
        raise BenchmarkError(f"unknown preset {preset!r}", hint=f"presets: {', '.join(PRESETS)}")


def preset_ms(preset: str, stages_ms: tuple[float, float, float]) -> float:
    """Combine copy in, compute and copy out as a preset defines latency."""
    return sum(stages_ms) if preset == TRTEXEC_10 else stages_ms[1]


def cross_check(engine: Path, card: ModelCard, preset: str) -> TrtexecResult | None:
    """Run trtexec on an engine with a batch of the card's usual size; ``None`` where it is not installed.

    Raises:
        BenchmarkError: It failed, or printed no figures.
    """
    program = shutil.which("trtexec")
    if program is None:
        return None
    command = [program, *arguments_for(engine, card, preset, major=_major_of(program))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
        raise BenchmarkError(
            f"trtexec failed with {done.returncode}: {lines[0] if lines else 'no reason given'}",
            hint="an engine runs on the TensorRT and the card model that built it",
        )
    return parse_output(done.stdout, preset, " ".join(command))


def arguments_for(engine: Path, card: ModelCard, preset: str, *, major: int) -> list[str]:
    """Make trtexec of a major version measure by a preset, as long as we do at least."""
    batch, (height, width) = card.batch[1], card.size_hw
    shape = (
        f"{batch}x{height}x{width}x3" if card.input == "frames" else f"{batch}x3x{height}x{width}"
    )
    is_dynamic = card.batch[0] != card.batch[2]
    return [
        f"--loadEngine={engine}",
        *([f"--shapes={card.input}:{shape}"] if is_dynamic else []),
        "--warmUp=1000",
        "--duration=3",
        "--iterations=300",
        *_FLAGS[preset, 10 if major < 11 else 11],
    ]


def parse_output(text: str, preset: str, command: str) -> TrtexecResult:
    """Read trtexec's summary.

    Raises:
        BenchmarkError: A figure is missing.
    """
    medians = {match["name"]: float(match["ms"]) for match in _LINE.finditer(text)}
    rate = _QPS.search(text)
    if rate is None or not {"Latency", "GPU Compute Time"} <= medians.keys():
        raise BenchmarkError(
            f"trtexec printed no figures that we know: found {', '.join(medians) or 'none'}"
        )
    return TrtexecResult(
        preset=preset,
        latency_ms=medians["Latency"],
        compute_ms=medians["GPU Compute Time"],
        qps=float(rate["qps"]),
        command=command,
    )


def explain(ours_ms: float, theirs: TrtexecResult | None, preset: str) -> str:
    """Say in one line what both measured, and why they differ."""
    mine = f"as {preset} defines latency ({PRESETS[preset]}): {ours_ms:.3f} ms"
    if theirs is None:
        return f"{mine}; trtexec is not installed beside it"
    gap = 100 * (ours_ms / theirs.latency_ms - 1)
    return (
        f"{mine}; trtexec {theirs.latency_ms:.3f} ms ({gap:+.1f} %), {theirs.qps:.1f} batches a second: it "
        "keeps two batches in flight and feeds random bytes, we wait for each frame and feed real ones"
    )


def _major_of(program: str) -> int:
    """Read the major version from trtexec's banner, ``TensorRT v101401`` or ``v8601``."""
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    match = _VERSION.search(done.stdout + done.stderr)
    if match is None:
        return 10
    digits = match["digits"]
    return int(digits[0]) if len(digits) == 4 else int(digits[:2])
