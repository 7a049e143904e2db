"""``build-engine``: from an ONNX artefact to an engine whose types were checked, and its record."""

from __future__ import annotations

import datetime
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx

from export.engine.kernels import Kernel, convolution_types, summarize_kernels
from export.engine.trt_builder import BuildOptions, build_plan
from export.errors import BuildError, ExportError, PrecisionError
from export.graph.half import LARGEST_HALF, convert_to_half
from export.metadata import with_card
from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import EngineRecord, read_record, record_path, write_engine
from runtime.errors import EsnetError
from runtime.files import cache_dir, sha256_of
from runtime.machine.gpus import advice_for, gpus_at_hand
from runtime.media.frames import batch_from_frames
from runtime.media.sources import open_source
from runtime.tensorrt_api import TENSORRT_RTX, TensorRt, load_tensorrt

PRECISIONS = ("fp32", "fp16", "int8")
PORTABLE_SMS = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""What TensorRT-RTX builds for when no target is named: the header's mask without SM 7.5."""
_CONVOLUTION_TYPES = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}
_SCANNED_FRAMES = 16
_HEADROOM = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """What a build did, or would do."""

    path: Path
    """The engine."""
    record: EngineRecord
    """What its record says; of a dry run, what is known beforehand."""
    status: str
    """``built``, ``unchanged`` or ``dry run``."""
    notes: tuple[str, ...] = ()
    """What the user should know."""


def build_engine(
    onnx_path: Path,
    output: Path | None,
    options: BuildOptions,
    *,
    command: Sequence[str],
    force: bool = False,
    dry_run: bool = False,
    wait: Callable[[threading.Thread], None] = threading.Thread.join,
) -> EngineReport:
    """Build an engine from an artefact, check the types it computes in, and write it with its record.

    Args:
        onnx_path: An artefact of this toolkit.
        output: The engine file; ``None`` puts it beside the artefact.
        options: What is asked for.
        command: The command line that makes this engine, for its record.
        force: Build even where nothing has changed.
        dry_run: Do all but the build and the writing.
        wait: See ``trt_builder.build_plan``.

    Raises:
        ModelFileError: Not an artefact.
        BuildError: TensorRT refuses the graph or the request.
        PrecisionError: It computes in other types than asked for; nothing was written.
        BackendUnavailable: No TensorRT, or it needs a GPU that is not here.
    """
    card = ModelCard.from_file(onnx_path)
    trt = load_tensorrt(options.tensorrt)
    _check_request(card, trt, options, onnx_path)
    batch = options.batch or card.batch
    path = output or _default_output(onnx_path, card, options, trt)
    if not path.parent.is_dir():
        raise ExportError(
            f"there is no folder {path.parent} to write to", hint="make it, or name another: -o"
        )
    gpu = gpu_for_build()
    sms, gpu_name = _target(trt, options, gpu)
    islands, notes = _islands(onnx_path, card, options)
    notes += tuple(filter(None, {advice_for(sm, options.precision) for sm in sms}))
    identity = {
        "onnx": sha256_of(onnx_path),
        "tensorrt": [trt.kind, trt.version],
        "sms": [f"{major}.{minor}" for major, minor in sms],
        "gpu": gpu_name if not trt.cross_compiles else None,
        "precision": options.precision,
        "islands": sorted(islands),
        "batch": batch,
        "workspace": options.workspace_bytes,
        "compatible": [options.version_compatible, options.hardware_compatible],
    }
    record = EngineRecord(
        card=replace(card, precision=options.precision, batch=batch),
        plan_sha256="",
        onnx={"name": onnx_path.name, "sha256": identity["onnx"]},  # type: ignore[dict-item]
        tensorrt={"kind": trt.kind, "version": trt.version},
        target={"sms": identity["sms"], "gpu": gpu_name},
        precision={"asked": options.precision, "built": {}, "islands": sorted(islands)},
        profile=batch,
        kernels={},
        build={"key": _key(identity), "command": " ".join(command)},
    )
    if dry_run:
        return EngineReport(path=path, record=record, status="dry run", notes=notes)
    if not force and (unchanged := _unchanged(path, record)):
        return EngineReport(path=path, record=unchanged, status="unchanged", notes=notes)
    model = _model(onnx_path, card, options, islands)
    started = time.perf_counter()
    built = build_plan(
        trt,
        model.SerializeToString(),
        replace(options, batch=batch, timing_cache_path=_timing_cache(trt, options, sms)),
        wait=wait,
    )
    seconds = time.perf_counter() - started
    require_types(built.kernels, options.precision, num_islands=_num_convolutions(model, islands))
    record = replace(
        record,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        precision={**record.precision, "built": convolution_types(built.kernels)},
        kernels=summarize_kernels(built.kernels),
        build={
            **record.build,
            "seconds": round(seconds, 2),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        },
    )
    write_engine(path, built.plan, record)
    return EngineReport(path=path, record=record, status="built", notes=notes)


def gpu_for_build() -> tuple[str, tuple[int, int]] | None:
    """Get name and compute capability of the first GPU; ``None`` where there is none."""
    return next(iter(gpus_at_hand()), None)


def require_types(kernels: Sequence[Kernel], precision: str, *, num_islands: int) -> None:
    """Compare what was asked for with the types that the convolutions compute in.

    Args:
        kernels: The compiled kernels; without any, nothing can be said.
        precision: ``fp32``, ``fp16`` or ``int8``.
        num_islands: Convolutions that were asked to stay in fp32.

    Raises:
        PrecisionError: With the counts.
    """
    types = convolution_types(kernels)
    total, right = sum(types.values()), types.get(_CONVOLUTION_TYPES[precision], 0)
    # Post-training quantization leaves the first and the last layer out.
    allowed = max(num_islands, 4 if precision == "int8" else 0)
    if total and total - right > allowed:
        found = ", ".join(f"{count} in {name}" for name, count in types.items())
        raise PrecisionError(
            f"{precision} was asked for, but of {total} convolutions {found}; nothing was written",
            hint="this GPU or TensorRT cannot do better; --fp32 says what really runs",
        )


def _check_request(card: ModelCard, trt: TensorRt, options: BuildOptions, onnx_path: Path) -> None:
    """Refuse at once what cannot end well, with the better command."""
    asked, has = options.precision, card.precision
    again = f"esnet-export build-engine {onnx_path}"
    if asked == "int8" and trt.kind == TENSORRT_RTX:
        raise BuildError(
            "TensorRT-RTX runs INT8 slower than FP16: a kernel that quantizes again follows each convolution",
            hint=f"{again} --fp16 --tensorrt tensorrt-rtx",
        )
    if asked == "int8" and has != "int8":
        raise BuildError(
            f"{onnx_path} is {has}: an INT8 engine is built from a quantized artefact",
            hint=f"esnet-export quantize {onnx_path} --calibration DIR, then build-engine --int8",
        )
    if (asked == "fp32" and has != "fp32") or (asked == "fp16" and has == "int8"):
        raise BuildError(
            f"{onnx_path} is {has} already, its {asked} weights are gone",
            hint=f"{again} --{has}, or export it again without --{has}",
        )
    if options.version_compatible and trt.kind == TENSORRT_RTX:
        raise BuildError(
            "TensorRT-RTX has no version-compatible engines: the lean runtime is not part of it",
            hint="leave --version-compatible away, and build again after an upgrade",
        )


def _target(
    trt: TensorRt, options: BuildOptions, gpu: tuple[str, tuple[int, int]] | None
) -> tuple[tuple[tuple[int, int], ...], str | None]:
    """Tell which compute capabilities the engine will run on, and the GPU it is built on."""
    name, sm = gpu or (None, None)
    if trt.cross_compiles:
        return options.sms or PORTABLE_SMS, name
    if sm is None:
        raise BuildError(
            f"{trt.kind} {trt.version} builds on the GPU that will run the engine, and none is found here",
            hint="build on that machine; tensorrt-rtx builds anywhere: --tensorrt tensorrt-rtx",
        )
    if options.sms and options.sms != (sm,):
        raise BuildError(
            f"{trt.kind} builds for the GPU at hand, {name} (SM {sm[0]}.{sm[1]}), not for another",
            hint="leave --target away, or build on the machine that has it",
        )
    if options.hardware_compatible:
        return tuple(dict.fromkeys((sm, *PORTABLE_SMS, (9, 0), (10, 0)))), name
    return (sm,), name


def _islands(
    onnx_path: Path, card: ModelCard, options: BuildOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the nodes that half precision could overflow in, on the user's frames."""
    if options.precision != "fp16" or card.precision != "fp32":
        return (), ()
    if options.frames is None:
        return (), ("activation ranges not measured, no FP32 islands: --frames DIR measures them",)
    from export.engine.ranges import activation_peaks

    model = onnx.load(onnx_path)
    source = open_source(options.frames)
    pictures = islice((frame.image for frame in source), _SCANNED_FRAMES)
    peaks = activation_peaks(model, (batch_from_frames([picture], card) for picture in pictures))
    hot = {name for name, peak in peaks.items() if peak * _HEADROOM > LARGEST_HALF}
    islands = [node.name for node in model.graph.node if hot & {*node.input, *node.output}]
    top = max(peaks, key=lambda name: peaks[name])
    kept = (
        f"{len(islands)} nodes stay in FP32: {', '.join(islands[:6])}"
        if islands
        else "no FP32 islands"
    )
    return tuple(islands), (
        f"largest activation {peaks[top]:.4g} at {top}, half holds 65504: {kept}",
    )


def _model(
    onnx_path: Path, card: ModelCard, options: BuildOptions, islands: Sequence[str]
) -> onnx.ModelProto:
    model = onnx.load(onnx_path)
    if options.precision == "fp16" and card.precision == "fp32":
        return with_card(convert_to_half(model, islands=islands), replace(card, precision="fp16"))
    return model


def _num_convolutions(model: onnx.ModelProto, islands: Sequence[str]) -> int:
    return sum(node.name in islands and "Conv" in node.op_type for node in model.graph.node)


def _unchanged(path: Path, record: EngineRecord) -> EngineRecord | None:
    """Get the record of an engine that is already what is asked for."""
    if not (path.is_file() and record_path(path).is_file()):
        return None
    try:
        found = read_record(path)
    except EsnetError:
        return None  # damaged: build it again
    is_same = found.build.get("key") == record.build["key"]
    return found if is_same and sha256_of(path) == found.plan_sha256 else None


def _key(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _timing_cache(
    trt: TensorRt, options: BuildOptions, sms: Sequence[tuple[int, int]]
) -> Path | None:
    """Choose where kernel timings are kept; what compiles without timing them (RTX) keeps none."""
    if trt.cross_compiles:
        return None
    if options.timing_cache_path is not None:
        return options.timing_cache_path
    major, minor = sms[0]
    return cache_dir() / f"timing-{trt.version}-sm{major}{minor}.cache"


def _default_output(onnx_path: Path, card: ModelCard, options: BuildOptions, trt: TensorRt) -> Path:
    """Name the engine after the artefact, at the precision of the engine."""
    stem = onnx_path.stem.removesuffix("_tensorrt")
    stem = stem.replace(f"_{card.precision}", "") + f"_{options.precision}"
    suffix = ".rtx.engine" if trt.kind == TENSORRT_RTX else ".engine"
    return onnx_path.with_name(stem + suffix)
