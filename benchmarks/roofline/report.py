"""``esnet-bench roofline``: bounds of a model on GPUs, and bounds and measured times on this machine."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError
from benchmarks.models import TARGET_FPS, TARGET_SOURCE
from benchmarks.report import tables
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
from export.plan import FORMS, ExportPlan
from export.to_onnx import export_onnx
from runtime.artefact.advice import form_advice, quantization_advice
from runtime.artefact.card import ModelCard
from runtime.backend import installed_backends
from runtime.errors import EsnetError, ModelFileError
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
class Machine:
    """Measured peaks of this machine, and measured times of a model on it."""

    device: Device
    """Peaks."""
    model: AnalysedModel
    """Measured model: the given one, or the shipped weights in the form that suits the backend."""
    measured: Mapping[str, Summary]
    """Precision -> time from input batch to outputs on the host, ms."""
    notes: tuple[str, ...]
    """Remarks for the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RooflineReport:
    """Bounds of a model on devices."""

    model: AnalysedModel
    """Model of the GPU bounds."""
    devices: tuple[Device, ...]
    """GPUs with published peaks."""
    machine: Machine | None
    """This machine; ``None`` if not measured."""
    notes: tuple[str, ...]
    """Remarks for the user."""
    environment: dict[str, str]
    """Machine, libraries, date and command."""

    def analyses(self) -> list[tuple[Network, Device, Mapping[str, Summary]]]:
        """List network, device and measured times for every device, this machine last."""
        found: list[tuple[Network, Device, Mapping[str, Summary]]]
        found = [(self.model.network, device, {}) for device in self.devices]
        if here := self.machine:
            found.append((here.model.network, here.device, here.measured))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        bounds = [
            {
                "device": device.name,
                "precision": precision,
                **dataclasses.asdict(bound),
                "bytes": network.bytes_at(precision),
                "needed_efficiency": bound.needed_efficiency(TARGET_FPS),
            }
            for network, device, _ in self.analyses()
            for precision, bound in network.bounds(device).items()
        ]
        header = {"schema": 2, "mode": "roofline", "target_fps": TARGET_FPS, "bounds": bounds}
        return {**header, **dataclasses.asdict(self)}


def run_roofline(
    model: Path | None,
    *,
    gpu: str,
    size_hw: tuple[int, int] | None,
    measure: bool,
    show_layers: bool,
    json_path: Path | None,
    markdown_path: Path | None,
) -> RooflineReport:
    """Compute, measure, print and write; the arguments are the options of ``esnet-bench roofline``.

    Raises:
        InvalidInput: Unknown GPU.
        ModelFileError: The model is not an ONNX artefact.
        BenchmarkError: ``size_hw`` differs from the model's size, or the folder of a report is missing.
    """
    tables.check_folders(json_path, markdown_path)
    gpus = list(GPUS.values()) if gpu.lower() == "all" else [gpu_named(gpu)]
    with tempfile.TemporaryDirectory(prefix="esnet-roofline-") as temporary:
        folder = Path(temporary)
        path = model or _export(folder, size_hw or _DEFAULT_SIZE, "tensorrt")
        analysed = _read_model(path, model.name if model else f"{_WEIGHTS}, shipped weights")
        if size_hw is not None and size_hw != analysed.card.size_hw:
            raise BenchmarkError(
                f"{model} works at {_size(analysed.card.size_hw)}, --size asks for {_size(size_hw)}",
                hint="omit --size; it applies to the shipped weights only",
            )
        can_measure = measure and bool(installed_backends())
        advice = [advice_for(gpus[0].sm, precision) for precision in ITEM_BYTES]
        report = RooflineReport(
            model=analysed,
            devices=tuple(map(device_from_gpu, gpus)),
            machine=_measure_here(analysed, model, folder) if can_measure else None,
            notes=tuple(f"{gpus[0].name}: {text}" for text in advice if text and len(gpus) == 1),
            environment=describe_environment(),
        )
    document = document_from_report(report, show_layers=show_layers)
    tables.print_document(document)
    tables.write_outputs(
        (json_path, lambda path: tables.write_json(path, report.as_dict())),
        (
            markdown_path,
            lambda path: tables.write_text(path, tables.markdown_from_document(document)),
        ),
    )
    return report


def document_from_report(report: RooflineReport, *, show_layers: bool = False) -> Document:
    """Format a report: model, target and this machine, tables and notes."""
    facts = {
        "model": str(report.model),
        "target": f"{TARGET_FPS:g} FPS ({_TARGET_MS:.2f} ms), {TARGET_SOURCE}",
    }
    if machine := report.machine:
        facts["here"] = f"{machine.device.name}, {machine.device.source}"
        if machine.model is not report.model:
            facts["runs here"] = str(machine.model)
    return Document(facts, list(report_tables(report, show_layers=show_layers)), notes(report))


def notes(report: RooflineReport) -> list[str]:
    """Explain the bounds and their limits."""
    largest = max(layer.written_values for layer in report.model.network.layers)
    not_measured = ("This machine: not measured (--no-measure, or no backend is installed).",)
    return [
        "Theoretical lower bound; real engines are slower. Every layer runs at peak compute or peak memory "
        "bandwidth, without launch overhead. GPU peaks are published values at the reference boost clock.",
        f"{TARGET_FPS:g} FPS needs: bound / {_TARGET_MS:.2f} ms, the share of the bound's speed that an "
        "engine must reach; 'no': the bound itself is too slow.",
        "Layers pass activations through memory. If a cache holds them (at most "
        f"{largest * 4 / 1e6:.1f} MB in fp32), only 'compute alone' is a bound. Not counted: host copies; "
        "TF32 (Ampere and newer) and Winograd, which can be faster than 'compute alone'.",
        "Blocks and layers: MB and FLOP/B in fp32; 'by': compute or memory bounds most of the time.",
        *report.notes,
        *(report.machine.notes if report.machine else not_measured),
    ]


def report_tables(report: RooflineReport, *, show_layers: bool = False) -> Iterator[TextTable]:
    """Make the tables: all GPUs, or bounds and parts of each device."""
    analyses = report.analyses()
    if len(report.devices) > 1:
        yield gpus_table(report.model.network, report.devices)
        if show_layers:
            yield parts_table(report.model.network, by_layer=True)
        analyses = analyses[len(report.devices) :]
    for network, device, measured in analyses:
        yield device_table(network, device, measured)
        yield parts_table(network, device, by_layer=show_layers)


def gpus_table(network: Network, devices: Sequence[Device]) -> TextTable:
    """Make a table with one row per GPU and three columns per precision."""
    columns = ["GPU"]
    for precision in devices[0].peak_tops:
        columns += [f"{precision} ms", "FPS", f"{TARGET_FPS:g} FPS needs"]
    rows = []
    for device in devices:
        row = [device.name]
        for bound in network.bounds(device).values():
            row += [_ms(bound.ms), f"{bound.fps:.0f}", _needed(bound)]
        rows.append(row)
    return TextTable("bounds by published peaks", tuple(columns), rows)


def device_table(network: Network, device: Device, measured: Mapping[str, Summary]) -> TextTable:
    """Make a table with one row per precision of a device: bounds, and measured medians if there are any."""
    columns = ["precision", "peak TOPS", "GB/s", "bound ms", "FPS", "memory-bound", "compute alone"]
    columns += [f"{TARGET_FPS:g} FPS needs", *(["measured p50", "x bound"] if measured else [])]
    rows = []
    for precision, bound in network.bounds(device).items():
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


def parts_table(
    network: Network, device: Device | None = None, *, by_layer: bool = False
) -> TextTable:
    """Make a table with one row per block or layer: work, and the bound at each precision of a device."""
    part_name = "layer" if by_layer else "block"
    columns = [part_name, "GFLOP", "MB", "FLOP/B"]
    totals = network.bounds(device) if device else {}
    for precision in totals:
        columns += [f"{precision} ms", "share", "by"]
    rows = []
    for name, part in (*network.parts(by_layer=by_layer), ("all", network)):
        num_bytes = part.bytes_at("fp32")
        intensity = part.flops / num_bytes
        row = [name, f"{part.flops / 1e9:.3f}", f"{num_bytes / 1e6:.1f}", f"{intensity:.1f}"]
        for precision, bound in part.bounds(device).items() if device else ():
            share = bound.ms / totals[precision].ms
            by = "mem" if bound.memory_share > 0.5 else "comp"
            row += [f"{bound.ms:.3f}", f"{100 * share:.1f}%", by]
        rows.append(row)
    title = f"{part_name}s on {device.name}" if device else f"{part_name}s"
    return TextTable(title, tuple(columns), rows)


def _export(folder: Path, size_hw: tuple[int, int], optimized_for: str) -> Path:
    path = folder / f"{_WEIGHTS}_{optimized_for}.onnx"
    if not path.exists():
        plan = ExportPlan(size_hw=size_hw, optimized_for=optimized_for)
        export_onnx(_WEIGHTS, path, plan, verify=False)
    return path


def _read_model(path: Path, name: str) -> AnalysedModel:
    card = ModelCard.from_file(path)
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # the error types of protobuf differ between versions
        raise ModelFileError(
            f"{path} is damaged: {error}", hint="copy it again or export it again"
        ) from error
    network = network_from_onnx(graph, batch=card.batch.min)
    return AnalysedModel(name=name, card=card, network=network)


def _measure_here(analysed: AnalysedModel, model: Path | None, folder: Path) -> Machine:
    """Measure this machine, and the model; ``None`` exports the shipped weights for the backend."""
    backends = installed_backends()
    backend, path, load = backends[0], model, os.getloadavg()[0]
    if path is None:
        path = _export(folder, analysed.card.size_hw, backend if backend in FORMS else "tensorrt")
        analysed = _read_model(path, analysed.name)
    device = measure_machine(backends)
    lines = [f"measured p50: {backend}, from input batch to outputs on the host."]
    advice = (form_advice(analysed.card, backend), quantization_advice(analysed.card, backend))
    lines += filter(None, advice)
    if load > num_cores() / 2:
        lines.append(
            f"load {load:.1f} on {num_cores()} cores before the run: other processes make peaks and speed "
            "too low, and their ratio uncertain."
        )
    measured: dict[str, Summary] = {}
    try:
        measured = measure_model(path, backend, precisions=tuple(device.peak_tops))
    except EsnetError as error:
        lines.append(f"the model does not run here: {error}")
    return Machine(device=device, model=analysed, measured=measured, notes=tuple(lines))


def _needed(bound: RooflineBound) -> str:
    efficiency = bound.needed_efficiency(TARGET_FPS)
    return f"{100 * efficiency:.{int(efficiency <= 0.095)}f} %" if efficiency <= 1 else "no"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _size(size_hw: Sequence[int]) -> str:
    return "x".join(map(str, size_hw))
