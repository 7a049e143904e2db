"""The GPUs that an engine is built for: defaults, refusals and remarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from export.engine.trt_builder import BuildOptions
from export.errors import BuildError
from runtime.machine.gpus import Sm, sm_of, sm_text
from runtime.machine.support import advice_for, limits_of
from runtime.tensorrt_api import TensorRt

PORTABLE_SMS = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""Compute capabilities of TensorRT-RTX's portable engine, its default.

SM 7.5 in the same engine would cost the others speed: 4% more bytes moved at 512x1024 in FP16, and an engine
80% larger. NVIDIA recommends an engine of its own for SM 7.5:
docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html
"""
_TURING, _AMPERE = (7, 5), (8, 0)
# Orin, and Thor under CUDA 12 and 13. TensorRT has no hardware compatibility on JetPack. Source:
# docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-861/developer-guide, "Hardware Compatibility".
_JETSONS = ((8, 7), (10, 1), (11, 0))


class Targets(NamedTuple):
    """Compute capabilities of an engine."""

    sms: tuple[str, ...]
    """Those that it runs on, for the record."""
    compiled_for: tuple[Sm, ...] = ()
    """Those to set in the builder; empty for its default."""


def targets_of(trt: TensorRt, options: BuildOptions, gpu: tuple[str, Sm] | None) -> Targets:
    """Get the compute capabilities of an engine.

    Args:
        trt: Loaded TensorRT library.
        options: Build settings.
        gpu: Name and compute capability of this machine's GPU, if any.

    Raises:
        BuildError: The engine cannot be built, or nothing asked for runs it.
    """
    if trt.cross_compiles:
        return _rtx_targets(options, gpu)
    runs_rtx = all(limits_of(sm).runs_rtx for sm in options.sms)
    if gpu is None:
        rtx = ", or use --tensorrt tensorrt-rtx, which needs no GPU to build" if runs_rtx else ""
        raise BuildError(
            f"{trt.kind} {trt.version} builds on the GPU that will run the engine, and found no GPU",
            hint=f"build on that machine{rtx}",
        )
    if options.sms:
        rtx = ", or use --tensorrt tensorrt-rtx" if runs_rtx else ""
        raise BuildError(
            f"{trt.kind} builds only for {_this(gpu)}",
            hint=f"omit --target, build on the machine with that GPU{rtx}",
        )
    limits = limits_of(gpu[1])
    if not limits.supports(trt.version):
        raise BuildError(
            f"{trt.kind} {trt.version} does not support {_this(gpu)}; the last version that does is "
            f"{limits.tensorrt}",
            hint="esnet-doctor prints the command that installs it",
        )
    if not options.hardware_compatible:
        return Targets((sm_text(gpu[1]),))
    if gpu[1] < _AMPERE:
        raise BuildError(
            f"--hardware-compatible needs a GPU from Ampere on to build, not {_this(gpu)}",
            hint="omit --hardware-compatible",
        )
    if gpu[1] in _JETSONS:
        raise BuildError(
            f"--hardware-compatible is not available on a Jetson: {_this(gpu)}",
            hint="omit --hardware-compatible",
        )
    return Targets((f"{sm_text(_AMPERE)}+",))


def target_notes(
    trt: TensorRt, options: BuildOptions, gpu: tuple[str, Sm] | None
) -> tuple[str, ...]:
    """Get remarks on options that are slow on this machine's GPU or have no effect."""
    if trt.cross_compiles:
        no_effect = "--hardware-compatible has no effect: the engine runs on each --target"
        return (no_effect,) if options.hardware_compatible else ()
    advice = advice_for(gpu[1], options.precision) if gpu else None
    return (advice,) if advice else ()


def may_compute_in_fp32(trt: TensorRt, options: BuildOptions, sms: Sequence[str]) -> bool:
    """Check if TensorRT may choose FP32 kernels: 8.6 does, for INT8, and for FP16 where that is slower."""
    if options.precision == "int8":
        return trt.types_by_flags
    slow = (advice_for(sm_of(text.removesuffix("+")), "fp16") for text in sms)
    return options.precision == "fp16" and trt.types_by_flags and any(slow)


def _rtx_targets(options: BuildOptions, gpu: tuple[str, Sm] | None) -> Targets:
    if gpu and not options.sms and not limits_of(gpu[1]).runs_rtx:
        raise BuildError(
            f"TensorRT-RTX does not support {_this(gpu)}",
            hint="for it, use --tensorrt tensorrt; to build for another machine, give its GPU with --target",
        )
    is_turing = gpu is not None and gpu[1] == _TURING
    compiled_for = options.sms or ((_TURING,) if is_turing else ())
    return Targets(tuple(map(sm_text, compiled_for or PORTABLE_SMS)), compiled_for)


def _this(gpu: tuple[str, Sm]) -> str:
    return f"the GPU of this machine, {gpu[0]} (SM {sm_text(gpu[1])})"
