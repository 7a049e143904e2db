"""``esnet-export quantize``: make an INT8 artefact and check it on every installed backend."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from esnet.checkpoint import SHIPPED_RANGES
from esnet.data.labelled import LabelledSplit
from export.errors import CalibrationError, ExportError, ParityError
from export.graph.head import padded_width
from export.graph.pool import pool_bytes
from export.graph.qdq import SCHEMES, Scheme, insert_qdq, quantized_convolutions, range_of
from export.graph.scores import SCORES, quantize_scores, trim_padding
from export.metadata import load_artefact, require_artefact_output, with_card
from export.quantization.calibration import calibration_batches, measure_ranges
from export.quantization.check import CHECK_FRAMES, BackendCheck, BackendChecker
from export.quantization.range_table import RangeTable, write_trt_cache
from export.quantization.sensitivity import (
    block_sensitivity,
    draw_sensitivity,
    require_drawing,
)
from export.quantization.verdict import HINTS, low_agreement, mismatches, worst_drop
from runtime.artefact.card import FRAMES, LABELS, ModelCard
from runtime.files import atomic_path, require_outputs, sha256_of

OnFrame = Callable[[str, int, int], None]
"""Progress callback: description, number done, total."""
_FEW_FRAMES = 32
_CLASS_MULTIPLE = 4
"""Padding of an INT8 head on CPUs: OpenVINO takes 1 % less time for 12 classes than for 11 or 17."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeOptions:
    """Settings of a quantization."""

    calibration: Path | str | None = None
    """Calibration frames: folder, image, video, or a text file with one path per line; ``camvid`` or ``None``
    takes the range table shipped with the weights."""
    table_path: Path | None = None
    """Range table to use, or to write after a calibration."""
    count: int = 128
    """Number of calibration frames."""
    method: str = "mse"
    """One of ``calibration.METHODS``."""
    scheme: str | None = None
    """``tensorrt`` or ``cpu``; ``None`` takes the one that suits the artefact's form."""
    keep: Sequence[str] = ()
    """Blocks or convolutions, by module path, that stay float."""
    max_miou_drop: float = 0.5
    """Points of mIoU that INT8 may cost on labelled data."""
    min_agreement: float = 0.95
    """Smallest share of labels equal to fp32 on labelled data or calibration frames, 0 to 1."""
    trt_cache_path: Path | None = None
    """Calibration cache of TensorRT 8.6 to write."""
    sensitivity_path: Path | None = None
    """Image of the sensitivity of each block to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeReport:
    """Result of a quantization."""

    path: Path
    """INT8 artefact."""
    card: ModelCard
    """Its card."""
    sha256: str
    """Hash of the file."""
    num_quantized: int
    """Number of convolutions in 8 bits."""
    table: RangeTable
    """Ranges that were used."""
    checks: tuple[BackendCheck, ...]
    """Results of all installed backends."""
    miou_fp32: float | None
    """mIoU of the fp32 artefact, 0 to 1; ``None`` without labelled data."""
    frames: str
    """Number and origin of the frames that were checked."""
    warnings: tuple[str, ...]
    """Reasons to distrust the result."""
    sensitivity: Mapping[str, float]
    """Block to the share of labels that change if it alone is in 8 bits, the highest first; empty if it was
    neither requested nor needed."""


def quantize(
    model_path: Path,
    output: Path | None,
    options: QuantizeOptions,
    *,
    labelled: LabelledSplit | None = None,
    command: Sequence[str] = (),
    on_frame: OnFrame = lambda what, done, total: None,
) -> QuantizeReport:
    """Quantize an fp32 artefact, check the result on every installed backend, and write it.

    Args:
        model_path: fp32 artefact of this toolkit.
        output: File to write; ``None`` names it after the artefact.
        options: Settings.
        labelled: Labelled data. If mIoU drops too far on it, blocks go back to float, the most sensitive
            first. ``None`` checks the agreement with fp32 only.
        command: Command line, for the card.
        on_frame: Progress callback.

    Raises:
        CalibrationError: There are no usable ranges.
        ExportError: The file is not an fp32 artefact.
        InvalidInput: An output path cannot be written.
        ParityError: A backend does not match the simulation, too few labels agree with fp32, or mIoU drops
            too far; nothing is written.
    """
    model, card = load_artefact(model_path)
    _check_artefact(model_path, card)
    require_outputs(options.table_path, source=model_path, suffixes=(".json",))
    require_outputs(options.trt_cache_path, source=model_path)
    if options.sensitivity_path is not None:
        require_drawing(options.sensitivity_path, model_path)
    scheme = SCHEMES[options.scheme or ("tensorrt" if card.optimized_for == "tensorrt" else "cpu")]
    kept = _convolutions_of(model, options.keep)
    stem = model_path.stem.removesuffix(f"_{card.optimized_for}").replace("_fp32", "")
    path = output or model_path.with_name(f"{stem}_int8-{scheme.name}.onnx")
    require_artefact_output(path, source=model_path)
    frames = _calibration_frames(options)
    table, warnings = _range_table(model, card, options, frames, on_frame)
    if scheme.name == "cpu":  # TensorRT allows uint8 only at inputs; OpenVINO gains 4 to 12 %
        width = min(
            card.form.get("head_classes", card.num_classes),
            padded_width(card.num_classes, _CLASS_MULTIPLE, 1),
        )
        model = trim_padding(pool_bytes(model), width)
        card = replace(card, form={**card.form, "head_classes": width})
    card = _int8_card(card, scheme, table, model_path, command)
    checker = BackendChecker(model_path, card, labelled, frames, on_frame)
    search = _Search(model, table, scheme, card, checker, on_frame, kept)
    if options.sensitivity_path is not None:
        search.measure_sensitivity()
    with atomic_path(path) as temporary:
        card, quantized, checks = search.run(temporary, options.max_miou_drop)
        warnings += low_agreement(checks, checker, options.min_agreement, HINTS[scheme.name])
    if options.trt_cache_path is not None:
        write_trt_cache(table, options.trt_cache_path)
    if options.sensitivity_path is not None:
        draw_sensitivity(search.sensitivity, options.sensitivity_path, search.restored)
    return QuantizeReport(
        path=path,
        card=card,
        sha256=sha256_of(path),
        num_quantized=len(quantized_convolutions(quantized)),
        table=table,
        checks=tuple(checks),
        miou_fp32=checker.miou_fp32,
        frames=checker.frames,
        warnings=warnings,
        sensitivity=search.sensitivity,
    )


@dataclass(slots=True)
class _Search:
    """Search for the convolutions that must stay float to meet the mIoU budget."""

    model: onnx.ModelProto
    table: RangeTable
    scheme: Scheme
    card: ModelCard
    checker: BackendChecker
    on_frame: OnFrame
    kept: list[str]
    restored: list[str] = field(default_factory=list)
    sensitivity: dict[str, float] = field(default_factory=dict)

    def run(
        self, path: Path, max_miou_drop: float
    ) -> tuple[ModelCard, onnx.ModelProto, list[BackendCheck]]:
        """Quantize and check; while mIoU drops too far, restore the next most sensitive block to float.

        Raises:
            ParityError: A backend fails, or every block is float and mIoU still drops too far.
        """
        while True:
            ranges = self.table.ranges
            quantized = insert_qdq(self.model, ranges, self.scheme, keep=self.kept)
            if self.scheme.name == "cpu":
                quantized = quantize_scores(quantized, range_of(SCORES, ranges))
            onnx.save(with_card(quantized, self.card), path)
            checks, problems = self.checker.check(path, quantized)
            problems += mismatches(checks, self.scheme)
            drop = worst_drop(checks, self.checker.miou_fp32)
            if problems or drop is None or drop <= max_miou_drop:
                break
            if not self.sensitivity:
                self.measure_sensitivity()
            left = [block for block in self.sensitivity if block not in self.restored]
            if not left:
                problems = [f"mIoU drops by {drop:.2f} points, allowed {max_miou_drop:g}"]
                break
            self.restored.append(left[0])
            self.kept += _convolutions_of(self.model, left[:1])
        if problems:
            raise ParityError("; ".join(problems), hint=HINTS[self.scheme.name])
        matching = [check for check in checks if check.matches_reference]
        results = {
            "kept": sorted(self.kept),
            "restored": self.restored,
            "backends": [check.backend for check in matching],
            "equal_labels": min(check.agreement_fp32 for check in matching),
            "checked_on": self.checker.frames,
        }
        card = replace(self.card, quantization={**self.card.quantization, **results})
        onnx.save(with_card(quantized, card), path)
        return card, quantized, checks

    def measure_sensitivity(self) -> None:
        """Measure the sensitivity of each block on a few of the checker's frames."""
        batches = self.checker.batches[:: max(1, len(self.checker.batches) // CHECK_FRAMES)]
        self.sensitivity = block_sensitivity(
            self.model, self.table.ranges, self.scheme, batches, self.on_frame
        )


def _check_artefact(path: Path, card: ModelCard) -> None:
    if card.precision != "fp32":
        raise ExportError(
            f"{path} is already {card.precision.upper()}; start from the FP32 ONNX file",
            hint="export one with: esnet-export to-onnx WEIGHTS",
        )
    if card.input != FRAMES or LABELS not in card.outputs:
        raise ExportError(
            f"{path} has input {card.input} and output {', '.join(card.outputs)}",
            hint="quantize an artefact with --input frames --output labels, the defaults",
        )


def _calibration_frames(options: QuantizeOptions) -> Path | None:
    """Get the calibration frames; ``None`` if a range table is used."""
    source = options.calibration
    return None if source is None or str(source) in SHIPPED_RANGES else Path(source)


def _range_table(
    model: onnx.ModelProto,
    card: ModelCard,
    options: QuantizeOptions,
    frames: Path | None,
    on_frame: OnFrame,
) -> tuple[RangeTable, tuple[str, ...]]:
    """Load a table that fits the artefact, or measure one; with warnings."""
    warnings: tuple[str, ...] = ()
    source, path = options.calibration, options.table_path
    if source is None and path is not None:
        table = RangeTable.load(path)
    elif frames is None:
        shipped = SHIPPED_RANGES.get(str(source or card.name))
        if shipped is None or not shipped.is_file():
            raise CalibrationError(
                f"no ranges are shipped for {card.name!r}",
                hint="measure them on real frames: --calibration DIR",
            )
        table = RangeTable.load(shipped)
    else:
        ranges, num_frames, digest = measure_ranges(
            model,
            calibration_batches(frames, card, options.count),
            options.method,
            on_batch=lambda done: on_frame("calibrating", done, options.count),
        )
        table = RangeTable(
            weights_sha256=str(card.source.get("sha256", "")),
            mean=card.mean,
            std=card.std,
            size_hw=card.size_hw,
            method=options.method,
            num_frames=num_frames,
            frames_sha256=digest,
            ranges=ranges,
        )
        if num_frames < _FEW_FRAMES:
            warnings = (f"{num_frames} calibration frames are few; use 128 of different scenes",)
    table.require(card)
    if source is not None and path is not None:
        table.save(path)
    return table, warnings


def _int8_card(
    card: ModelCard, scheme: Scheme, table: RangeTable, float_path: Path, command: Sequence[str]
) -> ModelCard:
    """Make the card of the INT8 artefact, without the results of the check."""
    quantization = {
        "scheme": scheme.name,
        "method": table.method,
        "calibration_frames": table.num_frames,
        "float_artefact": sha256_of(float_path),
        "float_name": float_path.name,
    }
    created = {**card.created, "quantized by": shlex.join(command)}
    return replace(card, precision="int8", parity={}, created=created, quantization=quantization)


def _convolutions_of(model: onnx.ModelProto, paths: Sequence[str]) -> list[str]:
    """List the convolutions with these module paths or inside these blocks."""
    names = [node.name for node in model.graph.node if "Conv" in node.op_type]
    found: list[str] = []
    for path in paths:
        inside = [name for name in names if f"{name}.".startswith(f"{path}.")]
        if not inside:
            raise ExportError(f"no convolution is called {path!r}", hint=f"for example {names[1]}")
        found += inside
    return found
