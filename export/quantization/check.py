"""Whether a quantized file does what it says on every backend: labels against a simulation, and mIoU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from esnet.data.labelled import LabelledSplit
from esnet.data.scenes import street_scene
from esnet.metrics import ConfusionMatrix
from export.graph.qdq import Scheme
from export.quantization.unoptimized import run_unoptimized
from runtime.artefact.card import ModelCard
from runtime.backend import installed_backends, open_backend
from runtime.errors import EsnetError
from runtime.media.frames import resize_frame, resize_map

CHECK_FRAMES = 6
"""Frames that are generated where no labelled ones are given."""
_STRAY, _STRAY_FACTOR = 0.02, 1.5
"""A backend may differ from the simulated reference in 2 % of labels, or 1.5 times as many as quantization
itself changes: rounding differences cost 0.2 % on frames of 360x480, and more on tiny ones. OpenVINO 2026.4
on symmetric int8, which it executes wrongly, differs in 5 to 22 % there."""

LabelledFrame = tuple[np.ndarray, np.ndarray | None]
"""Picture RGB uint8 (H, W, 3), and its labels uint8 (H, W) where there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendCheck:
    """How one backend executes the quantized file."""

    backend: str
    """Its name."""
    agreement: float
    """Share of labels equal to the simulated reference's, 0 to 1."""
    agreement_fp32: float
    """Share of labels equal to the fp32 artefact's, 0 to 1."""
    matches_reference: bool
    """Whether it computes what the file says."""
    miou: float | None
    """On labelled data; ``None`` without."""


def check_set(labelled: LabelledSplit | None) -> list[LabelledFrame]:
    """Choose what the backends are checked on: labelled pictures, or generated scenes."""
    if labelled is None:
        return [(street_scene((360, 480), seed=seed).image, None) for seed in range(CHECK_FRAMES)]
    samples = [labelled[index] for index in range(len(labelled))]
    return [(sample.image, sample.labels) for sample in samples]


def check_backends(
    path: Path,
    float_path: Path,
    quantized: onnx.ModelProto,
    card: ModelCard,
    frames: Sequence[LabelledFrame],
    labelled: LabelledSplit | None,
    scheme: Scheme,
    on_frame: Callable[[str, int, int], None],
) -> tuple[list[BackendCheck], float | None, list[str]]:
    """Run the file as the reference and on every backend; say what strays."""
    resized = [resize_frame(image, card.size_hw)[None] for image, _ in frames]
    truth = [labels[0] for labels in run_unoptimized(quantized, as_batches(resized, card))]
    plain = _through(float_path, installed_backends()[0], "fp32", resized)
    miou_fp32 = _miou(plain, frames, labelled)
    allowed = max(_STRAY, _STRAY_FACTOR * (1 - _agreement(truth, plain)))
    checks, problems = [], []
    for number, backend in enumerate(installed_backends(), start=1):
        on_frame(f"checking {backend}", number, len(installed_backends()))
        try:
            labels = _through(path, backend, None, resized)
        except EsnetError as error:
            problems.append(f"{backend} does not run it: {error}")
            continue
        agreement = _agreement(labels, truth)
        check = BackendCheck(
            backend=backend,
            agreement=agreement,
            matches_reference=1 - agreement <= allowed,
            agreement_fp32=_agreement(labels, plain),
            miou=_miou(labels, frames, labelled),
        )
        checks.append(check)
        if not check.matches_reference and scheme.name == "cpu":
            problems.append(
                f"{backend} strays from the reference: {check.agreement:.2%} of labels agree"
            )
    if not any(check.matches_reference for check in checks):
        problems.append("no backend here executes it faithfully")
    return checks, miou_fp32, problems


def _through(
    path: Path, backend: str, precision: str | None, batches: Sequence[np.ndarray]
) -> list[np.ndarray]:
    with open_backend(path, backend, precision=precision) as opened:
        return [opened.infer(batch)[0][0] for batch in as_batches(batches, opened.card)]


def as_batches(frames: Sequence[np.ndarray], card: ModelCard) -> list[np.ndarray]:
    """Repeat each frame (1, H, W, 3) to the smallest batch that an artefact takes."""
    return [np.repeat(frame, card.batch[0], axis=0) for frame in frames]


def _agreement(labels: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.mean(a == b) for a, b in zip(labels, others, strict=True)]))


def _miou(
    labels: Sequence[np.ndarray],
    frames: Sequence[LabelledFrame],
    labelled: LabelledSplit | None,
) -> float | None:
    if labelled is None:
        return None
    matrix = ConfusionMatrix(labelled.label_set.num_classes, labelled.label_set.ignore_index)
    for predicted, (_, true) in zip(labels, frames, strict=True):
        if true is not None:
            matrix.update(true, resize_map(predicted, (true.shape[0], true.shape[1])))
    return matrix.miou
