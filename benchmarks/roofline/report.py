"""``esnet-bench roofline``: put floors beside what is measured here, print them, and write them to files."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError
from benchmarks.report.tables import TextTable, markdown_from_table, rich_table
from benchmarks.roofline.layers import (
    ITEM_BYTES,
    Device,
    Layer,
    Network,
    device_from_gpu,
    network_from_onnx,
    sum_floors,
)
from benchmarks.roofline.peak import Measured, measure_machine, measure_model
from benchmarks.timing.suite import TARGET_FPS, TARGET_SOURCE
from export.plan import FORMS, ExportPlan
from export.to_onnx import export_onnx
from runtime.artefact.advice import form_advice, quantization_advice
from runtime.artefact.card import ModelCard
from runtime.backend import installed_backends
from runtime.errors import EsnetError, ModelFileError
from runtime.files import atomic_path
from runtime.machine.gpus import GPUS, advice_for, gpu_named
from runtime.machine.machine import num_cores

ALL = "all"
_DEFAULT_SIZE = (512, 1024)
_WEIGHTS = "camvid"
_MIN_WIDTH = 128
_TARGET_MS = 1e3 / TARGET_FPS
_ADVICE = (form_advice, quantization_advice)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysedModel:
    """A network whose floors are computed."""

    name: str
    """For people."""
    card: ModelCard
    """Its artefact's card."""
    network: Network
    """Its fused layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """This machine, measured."""

    device: Device
    """Its peaks."""
    subject: AnalysedModel
    """What ran: the model, or the shipped weights in the form that suits the backend."""
    measured: tuple[Measured, ...]
    """How fast it ran."""
    notes: tuple[str, ...]
    """What the user should know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RooflineReport:
    """Floors of a network on devices."""

    subject: AnalysedModel
    """The network."""
    devices: tuple[Device, ...]
    """GPUs, with published peaks."""
    machine: Machine | None
    """This machine; ``None`` if it was left out or nothing here runs the model."""
    notes: tuple[str, ...]
    """What the user should know."""
    environment: dict[str, str]
    """Where and with what."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        machine = self.machine
        return {
            "schema": 1,
            "mode": "roofline",
            "target_fps": TARGET_FPS,
            **_subject_as_dict(self.subject),
            "devices": [_device_as_dict(self.subject.network, device) for device in self.devices],
            "machine": machine
            and {
                **_subject_as_dict(machine.subject),
                "device": _device_as_dict(machine.subject.network, machine.device),
                "measured": [dataclasses.asdict(entry) for entry in machine.measured],
            },
            "notes": list(self.notes),
            "environment": self.environment,
        }


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
    """Compute, measure, print, write; arguments are the command's options.

    Raises:
        InvalidInput: No such GPU.
        ModelFileError: The model is not an ONNX artefact.
        BenchmarkError: Options that do not go together, or a report without a folder to go to.
    """
    for path in (json_path, markdown_path):
        if path is not None and not path.parent.is_dir():
            raise BenchmarkError(
                f"report folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}"
            )
    targets = list(GPUS.values()) if gpu.lower() == ALL else [gpu_named(gpu)]
    with tempfile.TemporaryDirectory(prefix="esnet-roofline-") as folder:
        path = model or _export_shipped(Path(folder), size_hw or _DEFAULT_SIZE, "tensorrt")
        subject = _read_subject(path, model)
        if size_hw is not None and size_hw != subject.card.size_hw:
            raise BenchmarkError(
                f"{path} works at {_size(subject.card.size_hw)}, --size asks for {_size(size_hw)}",
                hint="leave --size away; it is for the shipped weights, which are exported on the spot",
            )
        is_runnable = measure and bool(installed_backends())
        report = RooflineReport(
            subject=subject,
            devices=tuple(map(device_from_gpu, targets)),
            machine=_measure_here(subject, model, Path(folder)) if is_runnable else None,
            notes=tuple(
                f"{targets[0].name}: {advice}"
                for precision in ITEM_BYTES
                if len(targets) == 1 and (advice := advice_for(targets[0].sm, precision))
            ),
            environment=describe_environment(),
        )
    print_roofline(report, show_layers=show_layers)
    for path, text in (
        (json_path, json.dumps(report.as_dict(), indent=2) + "\n"),
        (markdown_path, markdown_from_report(report, show_layers=show_layers)),
    ):
        if path is not None:
            with atomic_path(path) as temporary:
                temporary.write_text(text)
            print(f"wrote {path}")
    return report


def print_roofline(
    report: RooflineReport, console: Console | None = None, *, show_layers: bool = False
) -> None:
    """Print what was computed, the tables, and how to read them."""
    console = console or Console(highlight=False)
    if console.width < _MIN_WIDTH:
        console = Console(highlight=False, width=_MIN_WIDTH, file=console.file)
    for key, value in headlines(report):
        console.print(f"{key:>10}  {value}", markup=False, soft_wrap=True)
    console.print()
    for grid in grids(report, show_layers=show_layers):
        console.print(rich_table(grid))
    for note in notes(report):
        console.print(note, markup=False, soft_wrap=True)


def markdown_from_report(report: RooflineReport, *, show_layers: bool = False) -> str:
    """Write what is printed as a Markdown page."""
    parts = ["# Roofline", "\n".join(f"- {key}: {value}" for key, value in headlines(report))]
    for grid in grids(report, show_layers=show_layers):
        parts.append(f"## {grid.title}\n\n{markdown_from_table(grid)}")
    parts.append("\n".join(f"- {note}" for note in notes(report)))
    return "\n\n".join(parts) + "\n"


def headlines(report: RooflineReport) -> Iterator[tuple[str, str]]:
    """Say what the floors are of, and of which devices."""
    yield "model", _described(report.subject)
    yield "target", f"{TARGET_FPS:g} FPS ({_TARGET_MS:.2f} ms), {TARGET_SOURCE}"
    if report.machine is not None:
        machine = report.machine
        yield "here", f"{machine.device.name}, {machine.device.source}"
        if machine.subject is not report.subject:
            yield "runs here", _described(machine.subject)


def grids(report: RooflineReport, *, show_layers: bool = False) -> Iterator[TextTable]:
    """Lay out the tables: all GPUs or one, this machine, and blocks or layers of both."""
    network, machine = report.subject.network, report.machine
    lay_out = layers_table if show_layers else blocks_table
    if len(report.devices) > 1:
        yield gpus_table(network, report.devices)
        if show_layers:
            yield work_table(network)
    else:
        yield device_table(network, report.devices[0])
        yield lay_out(network, report.devices[0])
    if machine is not None:
        yield device_table(machine.subject.network, machine.device, machine.measured)
        yield lay_out(machine.subject.network, machine.device)


def gpus_table(network: Network, devices: Sequence[Device]) -> TextTable:
    """Lay out one row for each GPU, three columns for each precision."""
    precisions = tuple(devices[0].peak_tops)
    header = ["GPU"]
    for precision in precisions:
        header += [f"{precision} ms", "FPS", f"{TARGET_FPS:g} FPS needs"]
    rows = []
    for device in devices:
        row = [device.name]
        for precision in precisions:
            floor = network.floor(device, precision)
            row += [_ms(floor.ms), f"{floor.fps:.0f}", _needed(floor.needed_efficiency(TARGET_FPS))]
        rows.append(tuple(row))
    return TextTable(title="floors by published peaks", columns=tuple(header), rows=tuple(rows))


def device_table(network: Network, device: Device, measured: Sequence[Measured] = ()) -> TextTable:
    """Lay out one row for each precision of a device, with what was measured beside the floor."""
    times_ms = {entry.precision: entry.engine.p50 for entry in measured}
    header = ["precision", "peak TOPS", "GB/s", "floor ms", "FPS", "memory-bound", "compute alone"]
    header += [f"{TARGET_FPS:g} FPS needs", *(["measured p50", "x floor"] if measured else [])]
    rows = []
    for precision, peak in device.peak_tops.items():
        floor = network.floor(device, precision)
        row = [
            precision,
            f"{peak:.3g}",
            f"{device.bandwidth_gb_s:.0f}",
            _ms(floor.ms),
            f"{floor.fps:.0f}" if floor.fps >= 10 else f"{floor.fps:.1f}",
            f"{100 * floor.memory_share:.0f} %",
            _ms(floor.compute_ms),
            _needed(floor.needed_efficiency(TARGET_FPS)),
        ]
        if measured:
            time_ms = times_ms.get(precision)
            row += [_ms(time_ms), f"{time_ms / floor.ms:.2f}"] if time_ms else ["-", "-"]
        rows.append(tuple(row))
    return TextTable(title=f"floor on {device.name}", columns=tuple(header), rows=tuple(rows))


def blocks_table(network: Network, device: Device) -> TextTable:
    """Lay out one row for each module: its work, MB in fp32, and time, share and bound at each precision."""
    return _times_table(
        f"blocks on {device.name}", "block", network.blocks().items(), network, device
    )


def layers_table(network: Network, device: Device) -> TextTable:
    """Lay out one row for each fused layer, as ``blocks_table`` does for modules."""
    layers = [(layer.name, [layer]) for layer in network.layers]
    return _times_table(f"layers on {device.name}", "layer", layers, network, device)


def work_table(network: Network) -> TextTable:
    """Lay out what each layer computes and moves, whatever the device."""
    header = ("layer", "operator", "nodes", "GFLOP", "fp32 MB", "fp16 MB", "int8 MB", "FLOP/B fp32")
    rows = tuple(
        (
            layer.name,
            layer.kind,
            str(len(layer.nodes)),
            f"{layer.flops / 1e9:.3f}",
            *(f"{layer.bytes_at(precision) / 1e6:.2f}" for precision in ("fp32", "fp16", "int8")),
            f"{layer.intensity('fp32'):.1f}",
        )
        for layer in network.layers
    )
    return TextTable(title="layers", columns=header, rows=rows)


def notes(report: RooflineReport) -> list[str]:
    """Explain what a floor is, and where it is none."""
    largest = max(layer.written_values for layer in report.subject.network.layers)
    lines = [
        "A floor is a bound that nobody reaches: every layer runs at the peak of arithmetic or of memory, "
        "and nothing is lost between them. GPU peaks are published ones at the reference boost clock.",
        f"{TARGET_FPS:g} FPS needs: floor / {_TARGET_MS:.2f} ms a frame, the share of the floor's speed that "
        "an engine must keep; 'no': even the floor is too slow.",
        "Layers hand over through memory. Where a cache holds what they hand over (at most "
        f"{largest * 4 / 1e6:.1f} MB in fp32), only 'compute alone' is a bound. Not counted: launches, "
        "copies to and from the host; TF32 (Ampere and newer) and Winograd, which can beat 'compute alone'.",
        "Blocks and layers: MB and FLOP/B in fp32; 'by': whether compute or memory bounds most of the time.",
        *report.notes,
    ]
    if report.machine is None:
        lines.append("This machine was not measured: --no-measure, or no backend is installed.")
    else:
        lines.extend(report.machine.notes)
    return lines


def _export_shipped(folder: Path, size_hw: tuple[int, int], target: str) -> Path:
    path = folder / f"{_WEIGHTS}_{target}.onnx"
    if not path.exists():
        export_onnx(_WEIGHTS, path, ExportPlan(size_hw=size_hw, optimized_for=target), verify=False)
    return path


def _read_subject(path: Path, model: Path | None) -> AnalysedModel:
    """Read an artefact; ``model`` is what the user named, ``None`` for the shipped weights."""
    card = ModelCard.from_file(path)
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own types, which differ between versions
        raise ModelFileError(
            f"{path} is damaged: {error}", hint="copy it again or export it anew"
        ) from error
    return AnalysedModel(
        name=f"{_WEIGHTS}, shipped weights" if model is None else model.name,
        card=card,
        network=network_from_onnx(graph, batch=card.batch[0]),
    )


def _measure_here(subject: AnalysedModel, model: Path | None, folder: Path) -> Machine:
    """Measure the machine, then the model on it; without one, the shipped weights in the backend's form."""
    backends = installed_backends()
    backend, path, load = backends[0], model, os.getloadavg()[0]
    if path is None:
        target = backend if backend in FORMS else subject.card.optimized_for
        path = _export_shipped(folder, subject.card.size_hw, target)
        subject = _read_subject(path, None)
    device = measure_machine(backends=backends)
    lines = [f"measured p50: {backend}, prepared batch in, outputs on the host out."]
    lines += filter(None, (advise(subject.card, backend) for advise in _ADVICE))
    if load > num_cores() / 2:
        lines.append(
            f"load {load:.1f} on {num_cores()} cores before the run: others compute here, so peaks and speed "
            "are too low, and their ratio is uncertain."
        )
    measured: tuple[Measured, ...] = ()
    try:
        measured = measure_model(path, backend, precisions=tuple(device.peak_tops))
    except EsnetError as error:
        lines.append(f"the model does not run here: {error}")
    return Machine(device=device, subject=subject, measured=measured, notes=tuple(lines))


def _times_table(
    title: str,
    what: str,
    parts: Iterable[tuple[str, Sequence[Layer]]],
    network: Network,
    device: Device,
) -> TextTable:
    header = [what, "GFLOP", "MB", "FLOP/B"]
    for precision in device.peak_tops:
        header += [f"{precision} ms", "share", "by"]
    rows = []
    for name, layers in (*parts, ("all", network.layers)):
        flops = sum(layer.flops for layer in layers)
        num_bytes = sum(layer.bytes_at("fp32") for layer in layers)
        row = [name, f"{flops / 1e9:.3f}", f"{num_bytes / 1e6:.1f}", f"{flops / num_bytes:.1f}"]
        for precision in device.peak_tops:
            floor = sum_floors((layer.floor(device, precision) for layer in layers), network.batch)
            share = floor.ms / network.floor(device, precision).ms
            bound = "mem" if floor.memory_share > 0.5 else "comp"
            row += [f"{floor.ms:.3f}", f"{100 * share:.1f}%", bound]
        rows.append(tuple(row))
    return TextTable(title=title, columns=tuple(header), rows=tuple(rows))


def _subject_as_dict(subject: AnalysedModel) -> dict[str, Any]:
    return {
        "model": subject.name,
        "size_hw": list(subject.card.size_hw),
        "precision": subject.card.precision,
        "target": subject.card.optimized_for,
        "weights_sha256": subject.card.source.get("sha256"),
        "batch": subject.network.batch,
        "flops": subject.network.flops,
        "layers": [
            {**dataclasses.asdict(layer), "block": layer.block} for layer in subject.network.layers
        ],
    }


def _device_as_dict(network: Network, device: Device) -> dict[str, Any]:
    floors = {precision: network.floor(device, precision) for precision in device.peak_tops}
    return {
        **dataclasses.asdict(device),
        "floors": {
            precision: {
                **dataclasses.asdict(floor),
                "bytes": network.bytes_at(precision),
                "needed_efficiency": floor.needed_efficiency(TARGET_FPS),
            }
            for precision, floor in floors.items()
        },
    }


def _described(subject: AnalysedModel) -> str:
    network, card = subject.network, subject.card
    return (
        f"{subject.name}, {card.precision}, form for {card.optimized_for}, {_size(card.size_hw)}, "
        f"batch {network.batch}: {network.flops / 1e9:.1f} GFLOP in {len(network.layers)} fused layers, "
        f"{network.bytes_at('fp32') / 1e6:.0f} MB moved in fp32"
    )


def _needed(efficiency: float) -> str:
    if efficiency > 1:
        return "no"
    return f"{100 * efficiency:.{0 if efficiency > 0.095 else 1}f} %"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _size(size_hw: Sequence[int]) -> str:
    return "x".join(map(str, size_hw))
