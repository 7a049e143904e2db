"""Requests for engines that cannot succeed or are slow, each with the command to use instead."""

from __future__ import annotations

import shlex
from pathlib import Path

from export.engine.trt_builder import BuildOptions
from export.errors import BuildError
from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import EngineRecord
from runtime.tensorrt_api import TENSORRT_RTX, TensorRt


def check_request(card: ModelCard, trt: TensorRt, options: BuildOptions, path: Path) -> None:
    """Refuse a precision that the artefact does not have, and options that this TensorRT does not have.

    Raises:
        BuildError: The request cannot succeed; the hint has the command to use instead.
    """
    requested, found = options.precision, card.precision
    if requested == "int8" and found != "int8":
        quantized = path.with_name(f"{path.stem}-int8.onnx")
        raise BuildError(
            f"{path} is {found.upper()}; an INT8 engine needs a quantized artefact",
            hint=f"{_export('quantize', path, '-o', quantized, '--scheme', 'tensorrt')}; then: "
            f"{_export('build-engine', quantized, '--int8')}",
        )
    if found != "fp32" and requested not in (found, "int8"):
        origin = float_artefact(path, card)
        instead = _export("build-engine", origin, f"--{requested}") if origin else "without --fp16"
        raise BuildError(
            f"{path} is already {found.upper()}; start from the FP32 ONNX file",
            hint=f"{'' if origin else 'export '}{instead}; for an engine in {found.upper()}: "
            f"{_export('build-engine', path, f'--{found}')}",
        )
    if options.version_compatible and trt.kind == TENSORRT_RTX:
        raise BuildError(
            "TensorRT-RTX has no version-compatible engines: it does not include the lean runtime",
            hint="omit --version-compatible, and build again after an upgrade",
        )


def rtx_int8_note(path: Path, record: EngineRecord) -> str:
    """Say what TensorRT-RTX made of an INT8 artefact, and how to build FP16 from the file it came from."""
    types = record.precision["built"].items()
    found = ", ".join(f"{count} convolutions in {name}" for name, count in types)
    command = _export(
        "build-engine",
        float_artefact(path, record.card) or "MODEL.onnx",
        *("--fp16", "--tensorrt", TENSORRT_RTX),
    )
    return (
        f"TensorRT-RTX rounds to 8 bits in kernels of its own and computes {found or 'in unknown types'} "
        f"({record.kernels.get('count', 'unknown')} kernels); compare its time with FP16: {command}"
    )


def float_artefact(path: Path, card: ModelCard) -> Path | None:
    """Get the path of the FP32 file that an INT8 artefact was made from, as its card names it."""
    name = Path(str(card.quantization.get("float_name", ""))).name
    return path.with_name(name) if name else None


def _export(*words: object) -> str:
    return shlex.join(["esnet-export", *map(str, words)])
