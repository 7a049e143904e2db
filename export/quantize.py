"""``esnet-export quantize``: an INT8 artefact whose accuracy was checked on every backend at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from esnet.checkpoint import SHIPPED_RANGES
from esnet.data.labelled import LabelledSplit
from esnet.data.scenes import street_scene
from esnet.metrics import ConfusionMatrix
from export.calibration import METHODS, RangeTable, measure_ranges
from export.errors import CalibrationError, ExportError, ParityError
from export.graph.qdq import SCHEMES, Scheme, insert_qdq, quantized_convolutions
from export.metadata import with_card
from export.sensitivity import block_sensitivity
from runtime.backend import installed_backends, open_backend
from runtime.card import FRAMES, LABELS, ModelCard
from runtime.errors import RunError
from runtime.files import atomic_path, sha256_of
from runtime.frames import resize_frame, resize_map
from runtime.sources import open_source

_FEW_FRAMES = 32
_CHECK_FRAMES = 6
_FAITHFUL = 0.98
"""Smallest share of labels that a backend must have in common with the simulated reference. Rounding costs
0.5 %; OpenVINO 2026.4 on symmetric int8, which it executes wrongly, has 78 to 86 % in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendCheck:
    """How one backend executes the quantized file."""

    backend: str
    """Its name."""
    agreement: float
    """Share of labels equal to the simulated reference's, 0 to 1."""
    agreement_fp32: float
    """Share of labels equal to the fp32 artefact's, 0 to 1."""
    miou: float | None
    """On labelled data; ``None`` without."""

    @property
    def is_faithful(self) -> bool:
        """Whether it computes what the file says."""
        return self.agreement >= _FAITHFUL


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeReport:
    """What a quantization did."""

    path: Path
    """The artefact."""
    card: ModelCard
    """Its card."""
    sha256: str
    """Its hash."""
    table: RangeTable
    """The ranges that were used."""
    checks: tuple[BackendCheck, ...]
    """Every backend at hand."""
    miou_fp32: float | None
    """Of the float artefact; ``None`` without labelled data."""
    num_frames: int
    """Frames that the backends were checked on."""
    notes: tuple[str, ...]
    """What the user should know."""
    sensitivity: Mapping[str, float]
    """Block to the share of labels that it alone changes, the worst first; measured where the budget was
    exceeded, else empty."""


def quantize(
    model_path: Path,
    output: Path | None,
    *,
    calibration: Path | str | None = None,
    table_path: Path | None = None,
    count: int = 128,
    method: str = "percentile",
    scheme_name: str | None = None,
    keep: Sequence[str] = (),
    labelled: LabelledSplit | None = None,
    max_miou_drop: float = 0.5,
    command: Sequence[str] = (),
    on_frame: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> QuantizeReport:
    """Quantize an fp32 artefact, run the result on every backend at hand, and write it if they agree.

    Args:
        model_path: An fp32 artefact of this toolkit.
        output: The file to write; ``None`` names it after the artefact.
        calibration: Frames to measure ranges on: folder, image, video, or a text file with one path a line;
            ``camvid`` or ``None`` takes the table that is shipped with the weights.
        table_path: A table to use, or to write after measuring.
        count: Calibration frames.
        method: One of ``calibration.METHODS``.
        scheme_name: ``tensorrt`` or ``cpu``; ``None`` takes that of the artefact's target.
        keep: Convolutions, by module path or the start of one, that stay float.
        labelled: Labelled data for mIoU; ``None`` checks agreement with fp32 alone.
        max_miou_drop: Points of mIoU that INT8 may cost on ``labelled``; where it costs more, blocks go back
            to float, the most sensitive first, until it fits.
        command: The command line, for the card.
        on_frame: Called with what is done, how many frames, and of how many.

    Raises:
        CalibrationError: No usable ranges.
        ExportError: Not an fp32 artefact.
        ParityError: A backend strays from the reference, or mIoU drops too far; nothing is written.
    """
    card = ModelCard.from_file(model_path)
    _check_artefact(model_path, card)
    if method not in METHODS:
        raise CalibrationError(f"unknown method {method!r}", hint=f"methods: {', '.join(METHODS)}")
    scheme = SCHEMES[scheme_name or ("tensorrt" if card.target == "tensorrt" else "cpu")]
    model = onnx.load(model_path)
    notes: list[str] = []
    table = _table(model, card, calibration, table_path, count, method, notes, on_frame)
    kept = list(_kept(model, keep))
    path = output or model_path.with_name(f"{_stem(model_path, card)}_int8-{scheme.name}.onnx")
    frames = _check_set(labelled)
    base = replace(
        card,
        precision="int8",
        parity={},
        created={**card.created, "quantized by": " ".join(command)},
        quantization={
            "scheme": scheme.name,
            "method": table.method,
            "calibration_frames": table.num_frames,
            "float_artefact": sha256_of(model_path),
        },
    )
    sensitivity: dict[str, float] = {}
    restored: list[str] = []
    with atomic_path(path) as temporary:
        while True:
            quantized = insert_qdq(model, table.ranges, scheme, keep=kept)
            onnx.save(with_card(quantized, base), temporary)
            checks, miou_fp32, problems = _checked(
                temporary, model_path, quantized, base, frames, labelled, scheme, on_frame
            )
            drop = _worst_drop(checks, miou_fp32)
            if problems or drop is None or drop <= max_miou_drop:
                break
            sensitivity = sensitivity or block_sensitivity(
                model,
                table.ranges,
                scheme,
                _some_batches(frames, card),
                on_block=lambda done, total: on_frame("measuring blocks", done, total),
            )
            left = [block for block in sensitivity if block not in restored]
            if not left:
                problems.append(f"mIoU drops by {drop:.2f} points, allowed {max_miou_drop:g}")
                break
            restored.append(left[0])
            kept += _kept(model, left[:1])
        if problems:
            raise ParityError("; ".join(problems), hint=_way_out(scheme))
        quantization = {
            **base.quantization,
            "kept": sorted(kept),
            "restored": restored,
            "backends": [check.backend for check in checks if check.is_faithful],
        }
        int8_card = replace(base, quantization=quantization)
        onnx.save(with_card(quantized, int8_card), temporary)
    return QuantizeReport(
        path=path,
        card=int8_card,
        sha256=sha256_of(path),
        table=table,
        checks=tuple(checks),
        miou_fp32=miou_fp32,
        num_frames=len(frames),
        notes=tuple(notes),
        sensitivity=sensitivity,
    )


def _check_artefact(path: Path, card: ModelCard) -> None:
    if card.precision != "fp32":
        raise ExportError(
            f"{path} is {card.precision} already: ranges are measured on fp32",
            hint="quantize the fp32 artefact: esnet-export to-onnx WEIGHTS",
        )
    if card.input != FRAMES or LABELS not in card.outputs:
        raise ExportError(
            f"{path} takes {card.input} and gives {', '.join(card.outputs)}",
            hint="quantize an artefact with --input frames --output labels, the defaults",
        )


def _table(
    model: onnx.ModelProto,
    card: ModelCard,
    calibration: Path | str | None,
    table_path: Path | None,
    count: int,
    method: str,
    notes: list[str],
    on_frame: Callable[[str, int, int], None],
) -> RangeTable:
    """Take the ranges from a table that fits, or measure them."""
    weights = str(card.source.get("sha256", ""))
    is_shipped = calibration is None or str(calibration) in SHIPPED_RANGES
    if table_path is not None and table_path.is_file() and calibration is None:
        table = RangeTable.load(table_path)
    elif is_shipped:
        shipped = SHIPPED_RANGES.get(str(calibration or card.name))
        if shipped is None or not shipped.is_file():
            raise CalibrationError(
                f"no ranges are shipped for {card.name!r}",
                hint="measure them: --calibration DIR with real frames",
            )
        table = RangeTable.load(shipped)
    else:
        batches = _batches(Path(str(calibration)), card, count)
        ranges, measured, digest = measure_ranges(
            model, batches, method, on_batch=lambda done: on_frame("calibrating", done, count)
        )
        if measured < _FEW_FRAMES:
            notes.append(f"{measured} calibration frames are few: 128 of many scenes are better")
        if all(high - low == 0 for low, high in ranges.values()):
            raise CalibrationError("every activation is 0 on these frames", hint="give real frames")
        table = RangeTable(
            weights_sha256=weights,
            mean=card.mean,
            std=card.std,
            size_hw=card.size_hw,
            method=method,
            num_frames=measured,
            frames_sha256=digest,
            ranges=ranges,
        )
        if table_path is not None:
            table.save(table_path)
    table.require(weights_sha256=weights, mean=card.mean, std=card.std)
    return table


def _batches(source: Path, card: ModelCard, count: int) -> Iterator[np.ndarray]:
    """Read calibration frames, spread over the source, one batch each; black frames are no frames."""
    size = card.batch[0]
    for image in islice(_images(source, count), count):
        frame = resize_frame(image, card.size_hw)
        yield np.repeat(frame[None], size, axis=0)


def _images(source: Path, count: int) -> Iterator[np.ndarray]:
    if source.suffix == ".txt" and source.is_file():
        names = [line.split()[0] for line in source.read_text().splitlines() if line.strip()]
        chosen = names[:: max(1, len(names) // count)]
        for name in chosen:
            yield from (frame.image for frame in open_source(source.parent / name))
        return
    opened = open_source(source)
    step = max(1, (opened.num_frames or count) // count)
    yield from (frame.image for frame in islice(opened, 0, None, step))


def _kept(model: onnx.ModelProto, keep: Sequence[str]) -> tuple[str, ...]:
    names = [node.name for node in model.graph.node if "Conv" in node.op_type]
    kept = [name for name in names if any(name == k or name.startswith(f"{k}.") for k in keep)]
    unknown = [k for k in keep if not any(name == k or name.startswith(f"{k}.") for name in names)]
    if unknown:
        raise ExportError(
            f"no convolution is called {unknown[0]!r}", hint=f"for example {names[1]}"
        )
    return tuple(kept)


def _check_set(labelled: LabelledSplit | None) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Choose what the backends are checked on: labelled pictures, or generated scenes."""
    if labelled is None:
        return [(street_scene((360, 480), seed=seed).image, None) for seed in range(_CHECK_FRAMES)]
    samples = [labelled[index] for index in range(len(labelled))]
    return [(sample.image, sample.labels) for sample in samples]


def _checked(
    path: Path,
    float_path: Path,
    quantized: onnx.ModelProto,
    card: ModelCard,
    frames: Sequence[tuple[np.ndarray, np.ndarray | None]],
    labelled: LabelledSplit | None,
    scheme: Scheme,
    on_frame: Callable[[str, int, int], None],
) -> tuple[list[BackendCheck], float | None, list[str]]:
    """Run the file as the reference and on every backend; say what strays."""
    resized = [resize_frame(image, card.size_hw)[None] for image, _ in frames]
    truth = _reference(quantized, resized, card)
    plain = _through(float_path, installed_backends()[0], "fp32", resized)
    miou_fp32 = _miou(plain, frames, labelled)
    checks, problems = [], []
    for number, backend in enumerate(installed_backends(), start=1):
        on_frame(f"checking {backend}", number, len(installed_backends()))
        try:
            labels = _through(path, backend, None, resized)
        except RunError as error:
            problems.append(f"{backend} does not run it: {error}")
            continue
        check = BackendCheck(
            backend=backend,
            agreement=_agreement(labels, truth),
            agreement_fp32=_agreement(labels, plain),
            miou=_miou(labels, frames, labelled),
        )
        checks.append(check)
        if not check.is_faithful and scheme.name == "cpu":
            problems.append(
                f"{backend} strays from the reference: {check.agreement:.2%} of labels agree"
            )
    if not any(check.is_faithful for check in checks):
        problems.append("no backend here executes it faithfully")
    return checks, miou_fp32, problems


def _worst_drop(checks: Sequence[BackendCheck], miou_fp32: float | None) -> float | None:
    """Get the largest loss of mIoU in points over the faithful backends; ``None`` without labels."""
    if miou_fp32 is None:
        return None
    mious = [check.miou for check in checks if check.is_faithful and check.miou is not None]
    return max((100 * (miou_fp32 - miou) for miou in mious), default=None)


def _some_batches(
    frames: Sequence[tuple[np.ndarray, np.ndarray | None]], card: ModelCard
) -> list[np.ndarray]:
    step = max(1, len(frames) // _CHECK_FRAMES)
    resized = [resize_frame(image, card.size_hw)[None] for image, _ in frames[::step]]
    return [np.repeat(frame, card.batch[0], axis=0) for frame in resized]


def _reference(
    model: onnx.ModelProto, batches: Sequence[np.ndarray], card: ModelCard
) -> list[np.ndarray]:
    """Simulate: ONNX Runtime without any optimisation rounds where the graph says, and computes in float."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    low = card.batch[0]
    return [
        session.run([LABELS], {FRAMES: np.repeat(batch, low, axis=0)})[0][0] for batch in batches
    ]


def _through(
    path: Path, backend: str, precision: str | None, batches: Sequence[np.ndarray]
) -> list[np.ndarray]:
    with open_backend(path, backend, precision=precision) as opened:
        low = opened.card.batch[0]
        return [opened.infer(np.repeat(batch, low, axis=0))[0][0] for batch in batches]


def _agreement(labels: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.mean(a == b) for a, b in zip(labels, others, strict=True)]))


def _miou(
    labels: Sequence[np.ndarray],
    frames: Sequence[tuple[np.ndarray, np.ndarray | None]],
    labelled: LabelledSplit | None,
) -> float | None:
    if labelled is None:
        return None
    matrix = ConfusionMatrix(labelled.label_set.num_classes, labelled.label_set.ignore_index)
    for predicted, (_, true) in zip(labels, frames, strict=True):
        if true is not None:
            matrix.update(true, resize_map(predicted, (true.shape[0], true.shape[1])))
    return matrix.miou


def _way_out(scheme: Scheme) -> str:
    return (
        "--keep BLOCK leaves a block in float; --method and more --calibration frames may help"
        if scheme.name == "cpu"
        else "--scheme cpu is what OpenVINO and ONNX Runtime execute rightly on CPUs"
    )


def _stem(path: Path, card: ModelCard) -> str:
    return path.stem.removesuffix(f"_{card.target}").replace("_fp32", "")


def as_rows(report: QuantizeReport) -> list[tuple[str, str]]:
    """Lay the report out as labelled lines."""
    quantization: dict[str, Any] = dict(report.card.quantization)
    count = len(quantized_convolutions(onnx.load(report.path)))
    rows = [
        (
            "ranges",
            f"{report.table.method}, {report.table.num_frames} frames of {_size(report.table)}",
        ),
        ("scheme", f"{quantization['scheme']}, {count} convolutions in 8 bits"),
    ]
    if quantization["kept"]:
        rows.append(("kept", ", ".join(quantization["kept"])))
    if quantization["restored"]:
        worst = ", ".join(f"{b} {100 * v:.2f} %" for b, v in list(report.sensitivity.items())[:5])
        rows.append(("blocks", f"labels changed by one block alone: {worst} ..."))
        rows.append(
            ("restored", f"to float, for the budget: {', '.join(quantization['restored'])}")
        )
    if report.miou_fp32 is not None:
        rows.append(("fp32", f"mIoU {100 * report.miou_fp32:.2f} %"))
    for check in report.checks:
        miou = "" if check.miou is None else f"mIoU {100 * check.miou:.2f} %, "
        word = "" if check.is_faithful else "  STRAYS: not to be used"
        agreement = f"as the reference {check.agreement:.2%}, as fp32 {check.agreement_fp32:.2%}"
        rows.append(("checked", f"{check.backend}: {miou}labels {agreement}{word}"))
    size = report.path.stat().st_size / 1e6
    rows.append(("wrote", f"{report.path}  {size:.2f} MB  sha256 {report.sha256[:12]}"))
    rows += [("note", note) for note in report.notes]
    rows.append(("next", _next(report)))
    return rows


def _next(report: QuantizeReport) -> str:
    if report.card.quantization["scheme"] == "tensorrt":
        return f"esnet-export build-engine {report.path} --int8"
    return f"esnet-bench {report.path}"


def _size(table: RangeTable) -> str:
    return f"{table.size_hw[0]}x{table.size_hw[1]}"
