"""``esnet-bench roofline``: bounds of a model on GPUs, and bounds and measured times on this machine."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError
from benchmarks.models import TARGET_FPS, TARGET_SOURCE
from benchmarks.report.tables import Document, TextTable
from benchmarks.roofline.layers import (
    ITEM_BYTES,
    Device,
    Network,
    RooflineBound,
    device_from_gpu,
    network_from_onnx,
)
from benchmarks.roofline.peak import measure_machine, measure_model
from benchmarks.timing.statistics import Summary
from export.metadata import load_artefact
from export.plan import ExportPlan
from export.to_onnx import export_onnx
from runtime.artefact.advice import form_advice, quantization_advice
from runtime.artefact.card import ModelCard
from runtime.backend import installed_backends
from runtime.errors import EsnetError
from runtime.machine.gpus import GPUS, gpu_named
from runtime.machine.machine import num_cores
from runtime.machine.support import advice_for

_DEFAULT_SIZE = (512, 1024)
_WEIGHTS = "camvid"
_TARGET_MS = 1e3 / TARGET_FPS


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysedModel:
    """A model whose bounds are computed."""

    name: str
    """File name, or name of the shipped weights."""
    card: ModelCard
    """Card of the artefact."""
    network: Network
    """Fused layers."""

    def __str__(self) -> str:
        card, network = self.card, self.network
        return (
            f"{self.name}, {card.precision}, form for {card.optimized_for}, {_size(card.size_hw)}, "
            f"batch {network.batch}: {network.flops / 1e9:.1f} GFLOP in {len(network.layers)} fused layers, "
            f"{network.bytes_at('fp32') / 1e6:.0f} MB memory traffic in fp32"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBounds:
    """Bounds of a model on a device, and measured times."""

    device: Device
    """Published or measured peaks."""
    bounds: dict[str, RooflineBound]
    """Precision -> bound."""
    measured: dict[str, Summary] = field(default_factory=dict)
    """Precision -> time from input batch to outputs on the host, ms; empty if not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RooflineReport:
    """Bounds of a model on GPUs and on this machine."""

    model: AnalysedModel
    """Model of the GPU bounds."""
    gpus: tuple[DeviceBounds, ...]
    """Bounds by published peaks."""
    model_here: AnalysedModel
    """Model on this machine: the given one, or the shipped weights in the form that suits the backend."""
    here: DeviceBounds | None
    """Bounds by measured peaks; ``None`` if not measured."""
    notes: tuple[str, ...]
    """Remarks for the user."""
    environment: dict[str, str]
    """Machine, libraries, date and command."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        header = {"schema": 4, "mode": "roofline", "target_fps": TARGET_FPS}
        return {**header, **dataclasses.asdict(self)}


def analyse_model(
    model: Path | None, *, gpu: str, size_hw: tuple[int, int] | None, measure: bool
) -> RooflineReport:
    """Compute the bounds of a model and measure it; the arguments are options of ``esnet-bench roofline``.

    Raises:
        InvalidInput: Unknown GPU.
        ModelFileError: The model is not an ONNX artefact.
        BenchmarkError: ``size_hw`` differs from the model's size.
    """
    gpus = list(GPUS.values()) if gpu.lower() == "all" else [gpu_named(gpu)]
    advice = [advice_for(gpus[0].sm, precision) for precision in ITEM_BYTES]
    notes = [f"{gpus[0].name}: {text}" for text in advice if text and len(gpus) == 1]
    with tempfile.TemporaryDirectory(prefix="esnet-roofline-") as temporary:
        folder, here = Path(temporary), None
        path = model or _export(folder, size_hw or _DEFAULT_SIZE, "tensorrt")
        analysed = _read_model(path, model.name if model else f"{_WEIGHTS}, shipped weights")
        if size_hw is not None and size_hw != analysed.card.size_hw:
            raise BenchmarkError(
                f"{model} works at {_size(analysed.card.size_hw)}, --size asks for {_size(size_hw)}",
                hint="omit --size; it applies to the shipped weights only",
            )
        analysed_here = analysed
        if not measure or not installed_backends():
            notes.append("This machine: not measured (--no-measure, or no backend is installed).")
        else:
            if model is None:
                path = _export(folder, analysed.card.size_hw, installed_backends()[0])
                analysed_here = _read_model(path, analysed.name)
            here = _measure_here(analysed_here, path, notes)
    devices = map(device_from_gpu, gpus)
    return RooflineReport(
        model=analysed,
        gpus=tuple(DeviceBounds(device=d, bounds=analysed.network.bounds(d)) for d in devices),
        model_here=analysed_here,
        here=here,
        notes=tuple(notes),
        environment=describe_environment(),
    )


def document_from_report(report: RooflineReport, *, show_layers: bool) -> Document:
    """Format a report: model, target and this machine; the tables of each device; notes."""
    model, here = report.model, report.here
    facts = {
        "model": str(model),
        "target": f"{TARGET_FPS:g} FPS ({_TARGET_MS:.2f} ms), {TARGET_SOURCE}",
    }
    if here:
        facts["here"] = f"{here.device.name}, {here.device.source}"
        if report.model_here is not model:
            facts["runs here"] = str(report.model_here)
    shown = [(model.network, report.gpus[0])] if len(report.gpus) == 1 else []
    shown += [(report.model_here.network, here)] if here else []
    parts = [] if len(report.gpus) == 1 else [gpus_table(report.gpus)]
    for network, item in shown:
        parts += [device_table(item), parts_table(network, item.device, by_layer=show_layers)]
    largest = max(layer.written_values for layer in model.network.layers)
    notes = [
        "Theoretical lower bound; real engines are slower. Every layer runs at peak compute or peak memory "
        "bandwidth, without launch overhead. GPU peaks are published values at the reference boost clock.",
        f"{TARGET_FPS:g} FPS needs: bound / {_TARGET_MS:.2f} ms, the share of the bound's speed that an "
        "engine must reach; 'no': the bound itself is too slow.",
        "Layers pass activations through memory. If a cache holds them (at most "
        f"{largest * 4 / 1e6:.1f} MB in fp32), only 'compute alone' is a bound. Not counted: host copies; "
        "TF32 (Ampere and newer) and Winograd, which can be faster than 'compute alone'.",
        "Blocks and layers: MB and FLOP/B in fp32; 'by': compute or memory bounds most of the time.",
    ]
    return Document(facts, parts, [*notes, *report.notes])


def gpus_table(gpus: Sequence[DeviceBounds]) -> TextTable:
    """Make a table with one row per GPU and three columns per precision."""
    columns = ["GPU"]
    for precision in gpus[0].bounds:
        columns += [f"{precision} ms", "FPS", f"{TARGET_FPS:g} FPS needs"]
    rows = []
    for item in gpus:
        row = [item.device.name]
        for bound in item.bounds.values():
            row += [_ms(bound.ms), f"{bound.fps:.0f}", _needed(bound)]
        rows.append(row)
    return TextTable("bounds by published peaks", tuple(columns), rows)


def device_table(item: DeviceBounds) -> TextTable:
    """Make a table with one row per precision of a device: bounds, and measured medians if there are any."""
    device, measured = item.device, item.measured
    columns = ["precision", "peak TOPS", "GB/s", "bound ms", "FPS", "memory-bound", "compute alone"]
    columns += [f"{TARGET_FPS:g} FPS needs", *(["measured p50", "x bound"] if measured else [])]
    rows = []
    for precision, bound in item.bounds.items():
        row = [
            precision,
            f"{device.peak_tops[precision]:.3g}",
            f"{device.bandwidth_gb_s:.0f}",
            _ms(bound.ms),
            f"{bound.fps:.0f}" if bound.fps >= 10 else f"{bound.fps:.1f}",
            f"{100 * bound.memory_share:.0f} %",
            _ms(bound.compute_ms),
            _needed(bound),
        ]
        if measured:
            p50 = measured[precision].p50 if precision in measured else None
            row += [_ms(p50), f"{p50 / bound.ms:.2f}"] if p50 else ["-", "-"]
        rows.append(row)
    return TextTable(f"bounds on {device.name}", tuple(columns), rows)


def parts_table(network: Network, device: Device, *, by_layer: bool) -> TextTable:
    """Make a table with one row per block or layer: work, and the bound at each precision of the device."""
    part_name, totals = "layer" if by_layer else "block", network.bounds(device)
    columns = [part_name, "GFLOP", "MB", "FLOP/B"]
    for precision in totals:
        columns += [f"{precision} ms", "share", "by"]
    rows = []
    for name, part in (*network.parts(by_layer=by_layer), ("all", network)):
        num_bytes = part.bytes_at("fp32")
        intensity = part.flops / num_bytes
        row = [name, f"{part.flops / 1e9:.3f}", f"{num_bytes / 1e6:.1f}", f"{intensity:.1f}"]
        for precision, bound in part.bounds(device).items():
            share = bound.ms / totals[precision].ms
            by = "mem" if bound.memory_share > 0.5 else "comp"
            row += [f"{bound.ms:.3f}", f"{100 * share:.1f}%", by]
        rows.append(row)
    return TextTable(f"{part_name}s on {device.name}", tuple(columns), rows)


def _export(folder: Path, size_hw: tuple[int, int], optimized_for: str) -> Path:
    path = folder / f"{_WEIGHTS}_{optimized_for}.onnx"
    plan = ExportPlan(size_hw=size_hw, optimized_for=optimized_for)
    return export_onnx(_WEIGHTS, path, plan, verify=False).path


def _read_model(path: Path, name: str) -> AnalysedModel:
    graph, card = load_artefact(path)
    network = network_from_onnx(graph, batch=card.batch.min)
    return AnalysedModel(name=name, card=card, network=network)


def _measure_here(model: AnalysedModel, path: Path, notes: list[str]) -> DeviceBounds:
    """Measure this machine and the model, and add remarks to ``notes``."""
    backend, load = installed_backends()[0], os.getloadavg()[0]
    device = measure_machine(backend)
    notes.append(f"measured p50: {backend}, from input batch to outputs on the host.")
    advice = (form_advice(model.card, backend), quantization_advice(model.card, backend))
    notes += filter(None, advice)
    if load > num_cores() / 2:
        notes.append(
            f"load {load:.1f} on {num_cores()} cores before the run: other processes make peaks and speed "
            "too low, and their ratio uncertain."
        )
    measured: dict[str, Summary] = {}
    try:
        measured = measure_model(path, backend, tuple(device.peak_tops))
    except EsnetError as error:
        notes.append(f"the model does not run here: {error}")
    return DeviceBounds(device=device, bounds=model.network.bounds(device), measured=measured)


def _needed(bound: RooflineBound) -> str:
    efficiency = TARGET_FPS / bound.fps
    return f"{100 * efficiency:.{int(efficiency <= 0.095)}f} %" if efficiency <= 1 else "no"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _size(size_hw: Sequence[int]) -> str:
    return "x".join(map(str, size_hw))
