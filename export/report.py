"""What ``esnet-export`` prints: the closing block of an export, and the description of a file."""

from __future__ import annotations

import dataclasses
import json
import textwrap

from export.inspect import Inspection
from export.to_onnx import ExportReport
from runtime.artefact.card import FRAMES, ModelCard

_GONE = ("BatchNormalization", "Pad", "Shape", "Dropout")


def text_from_export(report: ExportReport) -> str:
    """Say what was written, what goes in and out, how it was checked, and what to type next."""
    card = report.card
    rows = [
        ("weights", _weights_text(card)),
        ("graph", _changes(report.counts_before, report.counts_after)),
        ("", ", ".join(f"{name} {report.counts_after.get(name, 0)}" for name in _GONE)),
        ("parity", report.parity.as_text() if report.parity else "not checked (--no-verify)"),
        ("in", _input_text(card)),
        ("out", _output_text(card)),
        ("form", _form_text(card)),
        (
            "wrote",
            f"{report.path}  {_megabytes(report.path.stat().st_size)}  sha256 {_short(report.sha256)}",
        ),
        ("next", f"esnet-bench {report.path}"),
    ]
    return block(rows)


def text_from_inspection(inspection: Inspection) -> str:
    """Describe a file."""
    rows = [
        ("file", f"{inspection.path}  {_megabytes(inspection.num_bytes)}"),
        ("sha256", inspection.sha256),
        ("format", f"opset {inspection.opset}, IR {inspection.ir_version}"),
        *(("input", text) for text in inspection.inputs),
        *(("output", text) for text in inspection.outputs),
        (
            "weights",
            ", ".join(f"{count} {name}" for name, count in inspection.weight_types.items()),
        ),
        ("ops", f"{sum(inspection.ops.values())}: " + _counted(inspection.ops)),
    ]
    card = inspection.card
    if card is None:
        return block([*rows, ("card", "none: not an artefact of this toolkit")])
    parity = card.parity or {}
    rows += [
        ("name", f"{card.name}, {card.precision}"),
        ("in", _input_text(card)),
        ("out", _output_text(card)),
        ("form", _form_text(card)),
        ("classes", ", ".join(card.class_names)),
        *(("source", f"{key}: {value}") for key, value in card.source.items()),
        ("parity", ", ".join(f"{key} {value}" for key, value in parity.items()) or "not checked"),
        *(("created", f"{key}: {value}") for key, value in card.created.items() if value),
    ]
    return block(rows)


def json_from_inspection(inspection: Inspection) -> str:
    """Describe a file as JSON."""
    fields = {
        field.name: getattr(inspection, field.name) for field in dataclasses.fields(inspection)
    }
    fields["path"] = str(inspection.path)
    fields["card"] = json.loads(inspection.card.to_json()) if inspection.card else None
    return json.dumps(fields, indent=2)


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    """List every operator whose count the transforms changed."""
    names = sorted(
        {*before, *after}, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name)
    )
    changed = [
        f"{name} {before.get(name, 0)} -> {after.get(name, 0)}"
        for name in names
        if before.get(name, 0) != after.get(name, 0)
    ]
    return f"{sum(before.values())} nodes -> {sum(after.values())}: {', '.join(changed)}"


def _weights_text(card: ModelCard) -> str:
    source = card.source
    return f"{source['weights']}  {source['family']} layout  sha256 {_short(source['sha256'])}"


def _input_text(card: ModelCard) -> str:
    height, width = card.size_hw
    batch = _batch_text(card)
    is_plain = not any(card.mean) and set(card.std) == {1.0}
    formula = "x / 255" if is_plain else f"(x / 255 - {_rgb(card.mean)}) / {_rgb(card.std)}"
    if card.input == FRAMES:
        return f"frames  uint8 ({batch}, {height}, {width}, 3)  {card.color}; {formula} is in the graph"
    kind = "float16" if card.precision == "fp16" else "float32"
    return f"tensor  {kind} ({batch}, 3, {height}, {width})  {card.color}; the caller computes {formula}"


def _output_text(card: ModelCard) -> str:
    height, width = card.size_hw
    kind = "float16" if card.precision == "fp16" else "float32"
    texts = {
        "labels": f"labels  uint8 (N, {height}, {width})  {card.num_classes} classes of {card.label_set}",
        "confidence": f"confidence  uint8 (N, {height}, {width})  top probability x 255",
        "logits": f"logits  {kind} (N, {card.num_classes}, {height}, {width})",
    }
    return "; ".join(texts[name] for name in card.outputs)


def _form_text(card: ModelCard) -> str:
    width = card.form.get("head_classes", card.num_classes)
    padded = f", head padded to {width} classes" if width > card.num_classes else ""
    shape = f"upsample {card.form.get('upsample')}{padded}, opset {card.form.get('opset')}"
    return f"optimized for {card.optimized_for}: {shape}"


def _batch_text(card: ModelCard) -> str:
    low, _, high = card.batch
    return str(low) if low == high else f"{low}..{high}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _rgb(values: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _short(digest: str) -> str:
    return digest[:12]


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.2f} MB"


def block(rows: list[tuple[str, str]]) -> str:
    """Lay out labelled lines, folded at 110 columns."""
    indent = " " * 10
    return "\n".join(
        textwrap.fill(
            f"{label:<10}{text}",
            110,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in rows
    )
