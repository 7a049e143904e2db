"""``build-engine``: build an engine from an ONNX artefact, check its precision, and write its record."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from export.engine.kernels import convolution_types, summarize_kernels
from export.engine.precision import convolution_macs, fallback_note, mac_shares, require_types
from export.engine.requests import check_request, rtx_int8_note
from export.engine.targets import may_compute_in_fp32, target_notes, targets_of
from export.engine.trt_builder import BuildOptions, Wait, build_plan
from export.graph.half import convert_to_half
from export.metadata import load_artefact, with_card
from export.parity import Parity
from runtime.artefact.card import BatchRange, ModelCard
from runtime.artefact.engine_file import (
    SUFFIXES,
    EngineRecord,
    check_plan,
    read_record,
    write_engine,
)
from runtime.artefact.tensors import tensor_specs
from runtime.errors import EsnetError
from runtime.files import cache_dir, require_outputs, save_cache, sha256_of
from runtime.machine.gpus import cuda_gpu
from runtime.machine.support import version_numbers
from runtime.tensorrt_api import TENSORRT, TENSORRT_RTX, TensorRt, load_tensorrt

_FIRST_RUN = (
    "the first run on a GPU is slow: TensorRT-RTX compiles the kernels there, and keeps them in {}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """Result of a build."""

    path: Path
    """Engine file."""
    record: EngineRecord
    """Record of the engine; after a dry run without the figures of a build."""
    status: str
    """``built``, ``unchanged`` or ``dry run``."""
    notes: tuple[str, ...] = ()
    """Remarks for the user."""
    parity: Parity | None = None
    """Comparison of the graph in FP16 with the artefact; ``None`` if there was none."""


def build_engine(
    onnx_path: Path,
    output: Path | None,
    options: BuildOptions,
    *,
    command: Sequence[str],
    force: bool = False,
    dry_run: bool = False,
    wait: Wait = lambda thread, progress: thread.join(),
) -> EngineReport:
    """Build an engine from an artefact, check its compute types, and write it with its record.

    Args:
        onnx_path: Artefact of this toolkit.
        output: Engine file; ``None`` names it after the artefact, in the same folder.
        options: Build settings.
        command: Command line, for the record.
        force: Build even if the existing engine is up to date.
        dry_run: Check the request only; build and write nothing.
        wait: See ``trt_builder.build_plan``.

    Raises:
        ModelFileError: The file is not an artefact.
        InvalidInput: The output path cannot be written, or CUDA does not list the GPU.
        BuildError: TensorRT rejects the graph or the request.
        ParityError: The graph in FP16 does not compute what the artefact computes; nothing was written.
        PrecisionError: The engine computes in other types than requested; nothing was written.
        BackendUnavailable: TensorRT is not installed, or it needs a GPU and this machine has none.
    """
    card = ModelCard.from_file(onnx_path)
    trt = load_tensorrt(options.tensorrt)
    check_request(card, trt, options, onnx_path)
    options = replace(options, batch=options.batch or card.batch)
    path = output or _default_output(onnx_path, card, options, trt)
    require_outputs(path, source=onnx_path, suffixes=SUFFIXES)
    gpu = cuda_gpu(options.device)
    gpu_name = None if gpu is None else gpu[0]
    targets = targets_of(trt, options, gpu)
    model, _ = load_artefact(onnx_path)
    is_converted = options.precision == "fp16" and card.precision == "fp32"
    fp32_nodes: tuple[str, ...] = ()
    notes = target_notes(trt, options, gpu)
    if card.precision == "fp16" and not card.parity:
        notes += (
            f"{onnx_path} was not compared with its checkpoint: it was exported with --no-verify",
        )
    if is_converted:
        from export.engine.half import check_half, overflowing_nodes  # needs ONNX Runtime

        fp32_nodes, overflow_notes = overflowing_nodes(model, card, options.frames)
        notes = (*overflow_notes, *notes)
    record = _new_record(onnx_path, card, trt, options, targets.sms, gpu_name, fp32_nodes, command)
    if trt.kind == TENSORRT:
        trtexec = _trtexec_command(path, card, options.batch or card.batch, trt)
        record = replace(record, build={**record.build, "trtexec": trtexec})
    if dry_run:
        return EngineReport(path=path, record=record, status="dry run", notes=notes)
    needs_parity = is_converted and options.verify
    if not force and (unchanged := _unchanged(path, record, needs_parity=needs_parity)):
        return EngineReport(path=path, record=unchanged, status="unchanged", notes=notes)
    parity = None
    if is_converted:
        half = convert_to_half(model, fp32_nodes=fp32_nodes)
        if needs_parity:
            parity = check_half(model, half, card, options.frames)
            checked = {**record.precision, "equal_labels": parity.equal_labels}
            record = replace(record, precision=checked)
        model = with_card(half, replace(card, precision="fp16"))
    timings = options.timing_cache_path
    if trt.cross_compiles:
        timings = None  # TensorRT-RTX does not time kernels
    elif timings is None:
        words = re.sub(r"[^a-z0-9]+", "-", str(gpu_name).lower()).strip("-")
        timings = cache_dir() / f"timing-{trt.version}-{words}.cache"
    options = replace(options, timing_cache_path=timings, sms=targets.compiled_for)
    record, build_notes = _build_and_write(path, trt, model, options, record, wait)
    notes = (*notes, *build_notes)
    if _is_rtx_int8(trt, options):
        notes = (*notes, rtx_int8_note(onnx_path, record))
    return EngineReport(path=path, record=record, status="built", notes=notes, parity=parity)


def _new_record(
    onnx_path: Path,
    card: ModelCard,
    trt: TensorRt,
    options: BuildOptions,
    sms: Sequence[str],
    gpu_name: str | None,
    fp32_nodes: Sequence[str],
    command: Sequence[str],
) -> EngineRecord:
    """Make the record of an engine that is not built yet; its key changes with all that affects the build."""
    assert options.batch is not None, "build_engine sets the batch range"
    onnx_hash = sha256_of(onnx_path)
    tensorrt = {"kind": trt.kind, "version": trt.version}
    target = {"sms": list(sms), "gpu": gpu_name}
    precision = {"asked": options.precision, "built": {}, "fp32_nodes": sorted(fp32_nodes)}
    flags = (
        *(options.workspace_bytes, options.version_compatible, options.hardware_compatible),
        *(options.optimization_level, options.aux_streams),
    )
    gpus = target["sms"] if trt.cross_compiles else target
    identity = json.dumps([onnx_hash, tensorrt, gpus, precision, options.batch, flags])
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return EngineRecord(
        card=replace(card, precision=options.precision, batch=options.batch),
        plan_sha256="",
        onnx={"name": onnx_path.name, "sha256": onnx_hash},
        tensorrt=tensorrt,
        target=target,
        precision=precision,
        profile=options.batch,
        kernels={},
        build={
            "key": key,
            "command": shlex.join(command),
            "version_compatible": options.version_compatible,
        },
    )


def _trtexec_command(path: Path, card: ModelCard, batch: BatchRange, trt: TensorRt) -> str:
    """Get the command of NVIDIA's tool that times an engine as the scope ``pinned`` of a benchmark does."""
    tensor = next(tensor_specs(card))
    shape = "x".join(map(str, (batch.opt, *tensor.item_shape)))
    words = ["trtexec", f"--loadEngine={path}"]
    if not card.batch.is_fixed:  # trtexec refuses a shape for a graph without dynamic axes
        words.append(f"--shapes={tensor.name}:{shape}")
    # From 11 on, graphs are the default, and copies are not.
    is_new = version_numbers(trt.version) >= (11,)
    return shlex.join([*words, "--includeDataTransfers" if is_new else "--useCudaGraph"])


def _build_and_write(
    path: Path,
    trt: TensorRt,
    model: onnx.ModelProto,
    options: BuildOptions,
    record: EngineRecord,
    wait: Wait,
) -> tuple[EngineRecord, tuple[str, ...]]:
    """Build the plan, check its types, and write it, then its timings.

    Returns:
        The complete record, and notes on unknown kernels and on timings that could not be saved.
    """
    started = time.perf_counter()
    built = build_plan(trt, model.SerializeToString(), options, wait=wait)
    seconds = time.perf_counter() - started
    fp32_nodes = record.precision["fp32_nodes"]
    num_fp32 = sum(n.name in fp32_nodes and "Conv" in n.op_type for n in model.graph.node)
    may_fall_back = may_compute_in_fp32(trt, options, record.target["sms"])
    if may_fall_back:
        num_fp32 = len(built.kernels)
    if not _is_rtx_int8(trt, options):
        require_types(built.kernels, options.precision, num_fp32=num_fp32)
    macs = convolution_macs(model)
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    record = replace(
        record,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        precision={
            **record.precision,
            "built": convolution_types(built.kernels),
            "mac_shares": mac_shares(built.kernels, macs),
        },
        kernels=summarize_kernels(built.kernels),
        build={**record.build, "seconds": round(seconds, 2), "date": date},
    )
    write_engine(path, built.plan, record)
    timings_path = options.timing_cache_path
    notes = [_FIRST_RUN.format(cache_dir())] if trt.kind == TENSORRT_RTX else []
    if may_fall_back and (note := fallback_note(built.kernels, macs, options.precision)):
        notes.append(note)
    notes += [] if built.kernels else [f"{trt.kind} lists no kernels: the precision is not checked"]
    if timings_path and built.timings and (note := save_cache(timings_path, built.timings)):
        notes.append(note)
    return record, tuple(notes)


def _is_rtx_int8(trt: TensorRt, options: BuildOptions) -> bool:
    """Check for INT8 in TensorRT-RTX, which computes it in float: a note says so instead of an error."""
    return trt.kind == TENSORRT_RTX and options.precision == "int8"


def _unchanged(path: Path, record: EngineRecord, *, needs_parity: bool) -> EngineRecord | None:
    """Get the record of an existing engine if it is up to date, and was compared if that is needed."""
    try:
        found = read_record(path)
        check_plan(path, found)
    except EsnetError:
        return None  # missing or damaged: build again
    is_checked = not needs_parity or "equal_labels" in found.precision
    return found if is_checked and found.build.get("key") == record.build["key"] else None


def _default_output(onnx_path: Path, card: ModelCard, options: BuildOptions, trt: TensorRt) -> Path:
    """Name the engine after the artefact and the engine's precision."""
    stem = onnx_path.stem.removesuffix("_tensorrt")
    stem = stem.replace(f"_{card.precision}", "") + f"_{options.precision}"
    suffix = ".rtx.engine" if trt.kind == TENSORRT_RTX else ".engine"
    return onnx_path.with_name(stem + suffix)
