"""``esnet-export quantize``: an INT8 artefact whose accuracy was checked on every backend at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import onnx

from esnet.checkpoint import SHIPPED_RANGES
from esnet.data.labelled import LabelledSplit
from export.errors import CalibrationError, ExportError, ParityError
from export.graph.pool import pool_bytes
from export.graph.qdq import SCHEMES, Scheme, insert_qdq
from export.metadata import with_card
from export.quantization.calibration import METHODS, RangeTable, measure_ranges, write_trt_cache
from export.quantization.check import (
    CHECK_FRAMES,
    BackendCheck,
    LabelledFrame,
    as_batches,
    check_backends,
    check_set,
)
from export.quantization.sensitivity import block_sensitivity, draw_sensitivity
from runtime.artefact.card import FRAMES, LABELS, ModelCard
from runtime.files import atomic_path, sha256_of
from runtime.media.frames import resize_frame
from runtime.media.sources import open_source

_FEW_FRAMES = 32


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
    """Block to the share of labels that it alone changes, the worst first; measured where it was asked for or
    the budget was exceeded, else empty."""


def quantize(
    model_path: Path,
    output: Path | None,
    *,
    calibration: Path | str | None = None,
    table_path: Path | None = None,
    count: int = 128,
    method: str = "mse",
    scheme_name: str | None = None,
    keep: Sequence[str] = (),
    labelled: LabelledSplit | None = None,
    max_miou_drop: float = 0.5,
    trt_cache_path: Path | None = None,
    sensitivity_path: Path | None = None,
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
        trt_cache_path: Where to write the ranges as a calibration cache of TensorRT 8.6.
        sensitivity_path: Picture to draw of what each block alone costs.
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
    scheme = SCHEMES[scheme_name or ("tensorrt" if card.optimized_for == "tensorrt" else "cpu")]
    model = onnx.load(model_path)
    notes: list[str] = []
    table = _table(model, card, calibration, table_path, count, method, notes, on_frame)
    kept = list(_kept(model, keep))
    path = output or model_path.with_name(f"{_stem(model_path, card)}_int8-{scheme.name}.onnx")
    frames = check_set(labelled)
    if scheme.name == "cpu":
        model = pool_bytes(
            model
        )  # TensorRT takes no uint8 but at the edge; OpenVINO gains 4 to 12 %
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
    measured = partial(
        block_sensitivity,
        model,
        table.ranges,
        scheme,
        _some_batches(frames, card),
        on_block=lambda done, total: on_frame("measuring blocks", done, total),
    )
    sensitivity: dict[str, float] = {} if sensitivity_path is None else measured()
    restored: list[str] = []
    with atomic_path(path) as temporary:
        while True:
            quantized = insert_qdq(model, table.ranges, scheme, keep=kept)
            onnx.save(with_card(quantized, base), temporary)
            checks, miou_fp32, problems = check_backends(
                temporary, model_path, quantized, base, frames, labelled, scheme, on_frame
            )
            drop = _worst_drop(checks, miou_fp32)
            if problems or drop is None or drop <= max_miou_drop:
                break
            sensitivity = sensitivity or measured()
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
            "backends": [check.backend for check in checks if check.matches_reference],
        }
        int8_card = replace(base, quantization=quantization)
        onnx.save(with_card(quantized, int8_card), temporary)
    if trt_cache_path is not None:
        write_trt_cache(table, trt_cache_path)
    if sensitivity_path is not None:
        draw_sensitivity(sensitivity, sensitivity_path, restored=restored)
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
        batches = _not_blank(_batches(Path(str(calibration)), card, count))
        ranges, measured, digest = measure_ranges(
            model, batches, method, on_batch=lambda done: on_frame("calibrating", done, count)
        )
        if measured < _FEW_FRAMES:
            notes.append(f"{measured} calibration frames are few: 128 of many scenes are better")
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
    """Read calibration frames, spread over the source, one batch each."""
    size = card.batch[0]
    for image in islice(_images(source, count), count):
        frame = resize_frame(image, card.size_hw)
        yield np.repeat(frame[None], size, axis=0)


def _not_blank(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass batches on, and refuse them if none holds anything but one colour."""
    has_content = False
    count = 0
    for batch in batches:
        has_content |= bool((batch != batch[0, 0, 0]).any())
        count += 1
        yield batch
    if count and not has_content:
        raise CalibrationError(
            f"each of the {count} calibration frames is of one colour", hint="give real frames"
        )


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


def _worst_drop(checks: Sequence[BackendCheck], miou_fp32: float | None) -> float | None:
    """Get the largest loss of mIoU in points over the faithful backends; ``None`` without labels."""
    if miou_fp32 is None:
        return None
    mious = [check.miou for check in checks if check.matches_reference and check.miou is not None]
    return max((100 * (miou_fp32 - miou) for miou in mious), default=None)


def _some_batches(frames: Sequence[LabelledFrame], card: ModelCard) -> list[np.ndarray]:
    step = max(1, len(frames) // CHECK_FRAMES)
    resized = [resize_frame(image, card.size_hw)[None] for image, _ in frames[::step]]
    return as_batches(resized, card)


def _way_out(scheme: Scheme) -> str:
    return (
        "--keep BLOCK leaves a block in float; --method and more --calibration frames may help"
        if scheme.name == "cpu"
        else "--scheme cpu is what OpenVINO and ONNX Runtime execute rightly on CPUs"
    )


def _stem(path: Path, card: ModelCard) -> str:
    return path.stem.removesuffix(f"_{card.optimized_for}").replace("_fp32", "")
