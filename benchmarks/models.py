"""Options of a benchmark, and opening of models with label check and mIoU."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.accuracy.evaluate import ARTEFACT_SUFFIXES, evaluate, predictor_from_segmenter
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet
from benchmarks.timing.latency import TimingConfig
from esnet.data.datasets import open_split_of_model
from esnet.labels import label_set_from_dict
from esnet.metrics import label_agreement
from runtime.artefact.advice import form_advice, quantization_advice
from runtime.artefact.card import LOGITS, BatchRange, ModelCard
from runtime.backend import identify_artefact, skip_notes
from runtime.errors import EsnetError, ModelFileError
from runtime.files import sha256_of
from runtime.segmenter import Segmenter

TARGET_FPS = 63.0
TARGET_SOURCE = "published for a GTX 1080 Ti with PyTorch, arXiv 1906.09826"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """Settings of a benchmark."""

    mode: str = "latency"
    """``latency``, ``throughput`` or ``camera``."""
    camera_fps: float = 30.0
    """Frame rate of the camera, frames per second."""
    backends: Sequence[str | None] = (None,)
    """Backend names; ``None`` is the fastest installed backend."""
    precisions: Sequence[str | None] = (None,)
    """Precisions; ``None`` is the precision of the artefact. Ignored for INT8 and engines."""
    device: str | int | None = None
    """GPU, as for ``open_backend``."""
    batches: Sequence[int] = ()
    """Batch sizes, for latency and throughput; none: the smallest of each model, for throughput on a GPU the
    optimal one."""
    config: TimingConfig = field(default_factory=TimingConfig)
    """Length of warm-up and measurement."""
    target_fps: float = TARGET_FPS
    """Target of the end-to-end rate, frames per second."""
    reference: Path | None = None
    """fp32 artefact to compare labels with; ``None`` searches beside each model."""
    data_dir: Path | None = None
    """Dataset to measure mIoU on, on its val split; ``None`` skips it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Identity and accuracy of a measured model."""

    file: str
    """File name."""
    sha256: str
    """Hash of the file."""
    name: str
    """Short unique name for tables."""
    backend: str
    """Backend."""
    precision: str
    """Precision that really runs."""
    device: str
    """Device name."""
    size_hw: tuple[int, int]
    """Input height and width in pixels."""
    reference: str | None
    """File name of the label reference; ``None`` if labels are unchecked."""
    agreement: float | None
    """Share of pixels with the same label as the reference in fp32, 0 to 1."""
    miou: float | None
    """mIoU on labelled data, 0 to 1; ``None`` if not measured."""
    advice: tuple[str, ...]
    """Warnings about the form of the graph and the INT8 check on this backend."""


class OpenModel(NamedTuple):
    """One model on one backend at one precision."""

    segmenter: Segmenter
    """The open segmenter."""
    identity: ModelIdentity
    """Identity for results."""
    batches: Sequence[int]
    """Batch sizes to measure."""


def open_models(
    models: Sequence[Path], options: BenchOptions, frames: FrameSet, stack: ExitStack
) -> list[OpenModel]:
    """Open every model on every backend at every precision, check its labels and measure mIoU.

    The stack closes the models.

    Raises:
        EsnetError: A model cannot be opened, a backend, precision or batch size is not available, or the
            reference cannot run in fp32.
    """
    for path in models:
        _check_batches(path, options.batches)
    opened: list[tuple[Path, Segmenter]] = []
    for path in models:
        for backend in options.backends:
            for precision in precisions_of(path, options.precisions):
                segmenter = Segmenter.open(
                    path,
                    backend=backend,
                    precision=precision,
                    device=options.device,
                    timing=True,
                )
                opened.append((path, stack.enter_context(segmenter)))
    references = {path: options.reference or find_reference(path) for path in models}
    expected = {path: _fp32_labels(path, frames) for path in {*references.values()} if path}
    result = []
    for name, (path, segmenter) in zip(_names(opened), opened, strict=True):
        reference, agreement, miou = references[path], None, None
        if reference is not None:
            labels = list(map(segmenter.segment, frames.frames))
            agreement = label_agreement(labels, expected[reference])
        card, engine = segmenter.card, segmenter.backend
        if options.data_dir is not None:
            classes = label_set_from_dict(card.classes)
            labelled = open_split_of_model(classes, options.data_dir, "val")
            miou = evaluate(predictor_from_segmenter(segmenter, path), labelled).matrix.miou
        advice = (form_advice(card, engine.name), quantization_advice(card, engine.name))
        identity = ModelIdentity(
            file=path.name,
            sha256=sha256_of(path),
            name=name,
            backend=engine.name,
            precision=engine.precision,
            device=engine.device,
            size_hw=card.size_hw,
            reference=reference.name if reference else None,
            agreement=agreement,
            miou=miou,
            advice=(*filter(None, advice), *skip_notes(card)),
        )
        is_full = options.mode == "throughput" and engine.prefers_batches
        default = card.batch.opt if is_full else card.batch.min
        result.append(OpenModel(segmenter, identity, options.batches or [default]))
    return result


def precisions_of(path: Path, precisions: Sequence[str | None]) -> Sequence[str | None]:
    """Return the precisions to run a model at; INT8 artefacts and engines have only their own."""
    if path.suffix.lower() not in ARTEFACT_SUFFIXES:
        return precisions
    card, builder = identify_artefact(path)
    return [None] if card.precision == "int8" or builder is not None else precisions


def find_reference(path: Path) -> Path | None:
    """Find the fp32 artefact of the same weights and size: the model itself, or a file beside it."""
    card, builder = identify_artefact(path)
    if builder is None and card.precision == "fp32":
        return path
    weights = card.source.get("sha256")
    for other in sorted(path.parent.glob("*.onnx")) if weights else ():
        with suppress(ModelFileError):
            found = ModelCard.from_file(other)
            is_same = found.source.get("sha256") == weights and found.size_hw == card.size_hw
            if is_same and found.precision == "fp32":
                return other
    return None


def class_map(output: np.ndarray, card: ModelCard) -> np.ndarray:
    """Return one class map, uint8 (H, W), from the first output of a frame: labels or logits (K, H, W)."""
    return output.argmax(0).astype(np.uint8) if card.outputs[0] == LOGITS else output


def _check_batches(path: Path, batches: Sequence[int]) -> None:
    """Refuse batch sizes outside the range of an artefact."""
    card, builder = identify_artefact(path)
    low, _, high = card.batch
    if not batches or low <= min(batches) <= max(batches) <= high:
        return
    middle = sorted(batches)[len(batches) // 2]
    wanted = BatchRange(min(low, *batches), middle, max(high, *batches))
    words = ["esnet-export", "to-onnx", "WEIGHTS", "--optimize-for", card.optimized_for]
    if builder is not None:
        words = ["esnet-export", "build-engine", "MODEL.onnx", f"--{card.precision}"]
    raise BenchmarkError(
        f"--batch {','.join(map(str, batches))}: {path} takes batches of {low} to {high}",
        hint=shlex.join([*words, "--batch", str(wanted)]),
    )


def _fp32_labels(path: Path, frames: FrameSet) -> list[np.ndarray]:
    try:
        with Segmenter.open(path, precision="fp32") as segmenter:
            return list(map(segmenter.segment, frames.frames))
    except EsnetError as error:
        raise BenchmarkError(
            f"the reference {path} cannot run in fp32: {error}",
            hint="--reference takes an fp32 ONNX artefact of the same weights",
        ) from error


def _names(opened: Sequence[tuple[Path, Segmenter]]) -> list[str]:
    """Name each model by backend and precision, by its file if there are several, and by a number."""
    is_one_file = len({path for path, _ in opened}) == 1
    names = [
        ("" if is_one_file else f"{path.stem}, ")
        + f"{segmenter.backend.name} {segmenter.backend.precision}"
        for path, segmenter in opened
    ]
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]
