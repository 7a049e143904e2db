"""Texts and progress displays of ``esnet-export``."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from esnet.labels import label_set_hint, numbered_classes
from runtime.artefact.advice import form_advice
from runtime.artefact.card import FRAMES, ModelCard
from runtime.artefact.engine_file import EngineRecord
from runtime.backend import installed_backends
from runtime.console import is_terminal
from runtime.machine.machine import nvidia_gpus

if TYPE_CHECKING:  # a command imports only what it needs
    from export.engine.build import EngineReport
    from export.engine.inspect import EngineInspection
    from export.engine.progress import BuildProgress
    from export.inspect import Inspection
    from export.quantization.quantize import QuantizeReport
    from export.to_onnx import ExportReport

_REMOVED_OPS = ("BatchNormalization", "Pad", "Shape", "Dropout")
_NUMBERED = "the weights do not name their classes; name them with "
_TRTEXEC = (
    "its latency is the scope pinned of esnet-bench, on random frames and with a second batch in flight, so "
    "that a copy may wait for the other batch's"
)
_COMMAND = re.compile(r"\b(esnet-[a-z]+|trtexec) ")
_HEARTBEAT_SECONDS = 15.0
_TICK_SECONDS = 0.1
_LINE = textwrap.TextWrapper(
    110, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False
)

Rows = list[tuple[str, str]]


@contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal.

    Yields:
        A callback that takes a description, the number done, and the total (``None`` if unknown).
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, transient=True, console=console, disable=not is_terminal()) as display:
        task = display.add_task("opening", total=None)
        yield lambda what, done, total: display.update(
            task, description=what, total=total, completed=done
        )


def wait_for_build(thread: threading.Thread, build: BuildProgress) -> None:
    """Wait for a build thread with a progress bar, or else with a line on stderr every 15 s."""
    started = last = time.monotonic()
    with progress() as update:
        while thread.is_alive():
            phase, percent = (
                build.phase or "TensorRT is building the engine",
                int(100 * build.share),
            )
            update(phase, percent, 100 if percent else None)
            thread.join(_TICK_SECONDS)
            now = time.monotonic()
            if not is_terminal() and now - last >= _HEARTBEAT_SECONDS:
                last = now
                done = f", {percent} % of the steps: {phase}" if percent else ""
                print(f"building for {now - started:.0f} s{done}", file=sys.stderr, flush=True)


def text_from_export(report: ExportReport) -> str:
    """Describe an export: input, output, parity, file, and the next command."""
    card, source = report.card, report.card.source
    weights = f"{source['weights']}  {source['family']} layout  sha256 {source['sha256'][:12]}"
    removed = (f"{name} {report.counts_after.get(name, 0)}" for name in _REMOVED_OPS)
    rows = [
        ("weights", weights),
        ("graph", _changes(report.counts_before, report.counts_after)),
        ("", ", ".join(removed)),
        ("parity", report.parity.as_text() if report.parity else "not checked (--no-verify)"),
        *_card_rows(card),
        *((("note", _NUMBERED + label_set_hint(card.num_classes)),) if is_numbered(card) else ()),
        ("wrote", _file_text(report)),
        *_form_rows(card),
        ("next", shlex.join(["esnet-bench", str(report.path)])),
    ]
    return _block(rows)


def text_from_quantization(report: QuantizeReport) -> str:
    """Describe a quantization: ranges, checks, file, and the next command."""
    table, quantization = report.table, report.card.quantization
    height, width = table.size_hw
    rows = [
        ("ranges", f"{table.method}, {table.num_frames} frames of {height}x{width}"),
        ("scheme", f"{quantization['scheme']}, {report.num_quantized} convolutions in 8 bits"),
    ]
    if quantization["kept"]:
        rows.append(("kept", ", ".join(quantization["kept"])))
    for index, (name, share) in enumerate(report.sensitivity.items()):
        unit = "" if index else "  of the labels change if this block alone is in 8 bits"
        rows.append(("" if index else "blocks", f"{name:<20}{100 * share:6.2f} %{unit}"))
    if quantization["restored"]:
        blocks = ", ".join(quantization["restored"])
        rows.append(("restored", f"to float, for the mIoU budget: {blocks}"))
    if report.miou_fp32 is not None:
        rows.append(("fp32", f"mIoU {100 * report.miou_fp32:.2f} %"))
    for check in report.checks:
        miou = "" if check.miou is None else f"mIoU {100 * check.miou:.2f} %, "
        agreement = (
            f"label agreement: {100 * check.agreement:.2f} % with the simulation, "
            f"{100 * check.agreement_fp32:.2f} % with FP32"
        )
        problem = "" if check.matches_reference else "  MISMATCH: do not use it"
        rows.append(("checked", f"{check.backend}: {miou}{agreement}, on {report.frames}{problem}"))
    rows.append(("wrote", _file_text(report)))
    rows += [("warning", warning) for warning in report.warnings]
    words = ["esnet-bench", str(report.path)]
    if quantization["scheme"] == "tensorrt":
        words = ["esnet-export", "build-engine", str(report.path), "--int8"]
    return _block([*rows, *_form_rows(report.card), ("next", shlex.join(words))])


def text_from_engine(report: EngineReport) -> str:
    """Describe a build: origin, GPUs, compute types, file, and the next command."""
    record = report.record
    rows = [("engine", f"{report.path}  {report.status}"), *_record_rows(record)]
    if report.parity:
        rows.append(("parity", report.parity.as_text()))
    if report.status != "dry run":
        size = _megabytes(report.path.stat().st_size)
        seconds = record.build.get("seconds")
        rows.append(("wrote", f"{size}  sha256 {record.plan_sha256[:12]}  in {seconds} s"))
        if report.status == "built" and (command := record.build.get("trtexec")):
            rows += [("trtexec", command), ("", _TRTEXEC)]
    rows += [("note", note) for note in report.notes]
    return _block([*rows, ("next", shlex.join(["esnet-bench", str(report.path)]))])


def text_of_engine(inspection: EngineInspection) -> str:
    """Describe an engine: its record, its card, and its layers with their types."""
    record = inspection.record
    rows = [
        ("engine", f"{inspection.path}  {_megabytes(inspection.num_bytes)}"),
        ("sha256", record.plan_sha256),
        *_record_rows(record),
        *_about_rows(record.card),
        *(("build", f"{k}: {v}") for k, v in record.build.items() if v not in (None, "", False)),
    ]
    if inspection.problem:
        rows.append(("layers", f"unknown: {inspection.problem}"))
    for layer in inspection.layers:
        types = (", ".join(edge.type for edge in edges) for edges in (layer.inputs, layer.outputs))
        rows.append(("layer", f"{layer.kind}  {' -> '.join(types)}  {layer.name}"))
    return _block(rows)


def json_from_engine(inspection: EngineInspection) -> str:
    """Describe an engine as JSON."""
    layers = []
    for layer in inspection.layers:
        inputs, outputs = ([e._asdict() for e in edges] for edges in (layer.inputs, layer.outputs))
        layers.append({**layer._asdict(), "inputs": inputs, "outputs": outputs})
    fields = {**dataclasses.asdict(inspection), "layers": layers}
    return json.dumps(fields, indent=2, default=str)


def _record_rows(record: EngineRecord) -> Rows:
    """Describe origin, GPUs, batches, compute types and kernels of an engine."""
    sms = ", ".join(f"SM {sm}" for sm in record.target["sms"])
    gpu = record.target.get("gpu")
    types = f"{record.precision['asked']} requested"
    if record.precision["built"]:
        found = ", ".join(f"{count} {name}" for name, count in record.precision["built"].items())
        types += f"; convolutions compute in: {found}"
    if shares := record.precision.get("mac_shares"):
        found = ", ".join(
            f"{100 * share:.1f} % {'unknown' if name == '?' else name}"
            for name, share in shares.items()
        )
        types += f"; multiply-accumulates: {found}"
    if (share := record.precision.get("equal_labels")) is not None:
        types += f"; {100 * share:.6g} % of labels equal to FP32"
    rows = [
        ("from", f"{record.onnx['name']}  sha256 {record.onnx['sha256'][:12]}"),
        ("with", f"{record.tensorrt['kind']} {record.tensorrt['version']}"),
        ("for", f"{sms}{f', built on {gpu}' if gpu else ''}"),
        ("batch", str(record.profile)),
        ("types", types),
    ]
    if record.kernels:
        traffic = f"{record.kernels['bytes_moved'] / 1e6:.0f} MB memory traffic"
        count, batch = record.kernels["count"], record.profile.opt
        rows.append(("kernels", f"{count}, {traffic} at batch {batch}"))
    return rows


def text_from_inspection(inspection: Inspection) -> str:
    """Describe an ONNX file."""
    weights = ", ".join(f"{count} {name}" for name, count in inspection.weight_types.items())
    ops = ", ".join(f"{name} {count}" for name, count in inspection.ops.items())
    rows = [
        ("file", f"{inspection.path}  {_megabytes(inspection.num_bytes)}"),
        ("sha256", inspection.sha256),
        ("format", f"opset {inspection.opset}, IR {inspection.ir_version}"),
        *(("input", text) for text in inspection.inputs),
        *(("output", text) for text in inspection.outputs),
        ("weights", weights),
        ("ops", f"{sum(inspection.ops.values())}: {ops}"),
    ]
    card = inspection.card
    if card is None:
        return _block([*rows, ("card", "none: not an artefact of this toolkit")])
    return _block([*rows, *_about_rows(card)])


def _about_rows(card: ModelCard) -> Rows:
    """Describe name, inputs, outputs, classes, origin and parity of an artefact."""
    parity = ", ".join(f"{key} {value}" for key, value in card.parity.items())
    return [
        ("name", f"{card.name}, {card.precision}"),
        *_card_rows(card),
        ("classes", ", ".join(card.class_names)),
        ("", "inspect --label-set prints them as a label set file"),
        *(("source", f"{key}: {value}") for key, value in card.source.items()),
        ("parity", parity or "not checked"),
        *(("created", f"{key}: {value}") for key, value in card.created.items() if value),
    ]


def is_numbered(card: ModelCard) -> bool:
    """Check that the classes of an artefact have no names but their numbers."""
    return card.classes == numbered_classes(card.num_classes).as_dict()


def json_from_inspection(inspection: Inspection) -> str:
    """Describe an ONNX file as JSON."""
    fields = dataclasses.asdict(dataclasses.replace(inspection, card=None))
    card = json.loads(inspection.card.to_json()) if inspection.card else None
    return json.dumps({**fields, "card": card}, indent=2, default=str)


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    """List every operator whose count changed, the most frequent first."""
    pairs = {name: (before.get(name, 0), after.get(name, 0)) for name in {*before, *after}}
    ordered = sorted(pairs.items(), key=lambda item: (-max(item[1]), item[0]))
    changed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in ordered if old != new)
    return f"{sum(before.values())} nodes -> {sum(after.values())}: {changed}"


def _card_rows(card: ModelCard) -> Rows:
    """Describe input, output and form of an artefact."""
    width = card.form.get("head_classes", card.num_classes)
    padded = f", head padded to {width} classes" if width > card.num_classes else ""
    form = f"upsample {card.form.get('upsample')}{padded}, opset {card.form.get('opset')}"
    return [
        ("in", _input_text(card)),
        ("out", _output_text(card)),
        ("form", f"optimized for {card.optimized_for}: {form}"),
    ]


def _form_rows(card: ModelCard) -> Rows:
    """For a graph for TensorRT without a GPU, give the command for the first backend of this CPU."""
    if card.optimized_for != "tensorrt" or nvidia_gpus():
        return []
    advice = form_advice(card, next(iter(installed_backends()), ""))
    return [("note", f"no NVIDIA GPU here, and {advice}")] if advice else []


def _input_text(card: ModelCard) -> str:
    height, width = card.size_hw
    batch = card.batch.min if card.batch.is_fixed else f"{card.batch.min}..{card.batch.max}"
    is_plain = not any(card.mean) and set(card.std) == {1.0}
    formula = "x / 255" if is_plain else f"(x / 255 - {card.mean}) / {card.std}"
    if card.input == FRAMES:
        return f"frames  uint8 ({batch}, {height}, {width}, 3)  {card.color}; {formula} is in the graph"
    shape = f"{card.float_dtype} ({batch}, 3, {height}, {width})"
    return f"tensor  {shape}  {card.color}; the caller computes {formula}"


def _output_text(card: ModelCard) -> str:
    height, width = card.size_hw
    classes = f"{card.num_classes} classes" + ("" if is_numbered(card) else f" of {card.label_set}")
    texts = {
        "labels": f"labels  uint8 (N, {height}, {width})  {classes}",
        "confidence": f"confidence  uint8 (N, {height}, {width})  top probability x 255",
        "logits": f"logits  {card.float_dtype} (N, {card.num_classes}, {height}, {width})",
    }
    return "; ".join(texts[name] for name in card.outputs)


def _file_text(report: ExportReport | QuantizeReport) -> str:
    size = _megabytes(report.path.stat().st_size)
    return f"{report.path}  {size}  sha256 {report.sha256[:12]}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.2f} MB"


def _block(rows: Rows) -> str:
    """Lay out labelled lines, wrapped at 110 columns; a command stays one line, to be pasted."""
    lines = [f"{label:<10}{text}" for label, text in rows]
    return "\n".join(line if _COMMAND.search(line) else _LINE.fill(line) for line in lines)
