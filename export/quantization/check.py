"""Check of a quantized file on every installed backend: labels against a simulation, and mIoU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from esnet.data.datasets import open_split_of_model
from esnet.data.labelled import LabelledSplit
from esnet.data.scenes import street_scene
from esnet.labels import label_set_from_dict, load_label_set
from esnet.metrics import confusion_from_pairs, label_agreement
from export.quantization.calibration import calibration_batches, open_on_cpu
from runtime.artefact.card import ModelCard
from runtime.backend import installed_backends, open_backend
from runtime.errors import EsnetError
from runtime.media.frames import batch_from_frames

CHECK_FRAMES = 6
"""Number of frames to check without labelled data, and to measure sensitivity on."""
_MAX_MISMATCH, _MAX_MISMATCH_FACTOR = 0.02, 1.5
"""A backend may differ from the simulation in 2 % of labels, or 1.5 times as many as quantization itself
changes: rounding differences cost 0.2 % on frames of 360x480, and more on tiny ones. OpenVINO 2026.4 executes
symmetric int8 wrongly and differs in 5 to 22 % there."""


class BackendCheck(NamedTuple):
    """Result of one backend on the quantized file."""

    backend: str
    """Key of ``runtime.backend.BACKENDS``."""
    agreement: float
    """Share of labels equal to the simulation's, 0 to 1."""
    agreement_fp32: float
    """Share of labels equal to the fp32 artefact's, 0 to 1."""
    matches_reference: bool
    """True if the backend executes the file as the simulation does."""
    miou: float | None
    """mIoU on labelled data, 0 to 1; ``None`` without."""


class BackendChecker:
    """Compares quantized files of one fp32 artefact with it, and with a simulation of each file.

    It checks on labelled data, else on calibration frames, else on generated street scenes.
    """

    def __init__(
        self,
        float_path: Path,
        card: ModelCard,
        labelled: LabelledSplit | None,
        calibration: Path | None,
        on_frame: Callable[[str, int, int], None],
    ) -> None:
        """Read the frames and run the fp32 artefact on them.

        Args:
            float_path: The fp32 artefact.
            card: Its card; its quantized files have the same size and batch range.
            labelled: Labelled data, of which all frames are checked; ``None`` checks ``CHECK_FRAMES`` others.
            calibration: Calibration frames; ``None`` generates street scenes.
            on_frame: Called with a description, the number done and the total.
        """
        self._label_set = labelled.label_set if labelled is not None else None
        self._truth: list[np.ndarray] = []
        self.is_real = labelled is not None or calibration is not None
        """True if the frames are real ones."""
        if labelled is not None:
            samples = [labelled[index] for index in range(len(labelled))]
            self.batches = [batch_from_frames([sample.image], card) for sample in samples]
            self._truth = [sample.labels for sample in samples]
            what = f"images of {labelled.dataset} {labelled.split}"
        elif calibration is not None:
            self.batches = list(calibration_batches(calibration, card, CHECK_FRAMES))
            what = "calibration frames"
        else:
            scenes = [street_scene((360, 480), seed=seed).image for seed in range(CHECK_FRAMES)]
            self.batches = [batch_from_frames([scene], card) for scene in scenes]
            what = "generated street scenes"
        self.frames = f"{len(self.batches)} {what}"
        """Number and origin of the frames."""
        self._on_frame = on_frame
        self._fp32_labels = self._labels(float_path, installed_backends()[0], "fp32")
        self.miou_fp32 = self._miou(self._fp32_labels)

    def check(self, path: Path, quantized: onnx.ModelProto) -> tuple[list[BackendCheck], list[str]]:
        """Run a quantized file on every installed backend.

        Args:
            path: The quantized file.
            quantized: Its graph.

        Returns:
            The result of each backend that runs it, and the errors of those that do not.
        """
        reference = [labels[0] for labels in run_unoptimized(quantized, self.batches)]
        mismatch_of_int8 = 1 - label_agreement(reference, self._fp32_labels)
        allowed = max(_MAX_MISMATCH, _MAX_MISMATCH_FACTOR * mismatch_of_int8)
        backends = installed_backends()
        checks, errors = [], []
        for number, backend in enumerate(backends, start=1):
            self._on_frame(f"checking {backend}", number, len(backends))
            try:
                labels = self._labels(path, backend, None)
            except EsnetError as error:
                errors.append(f"{backend} does not run it: {error}")
                continue
            agreement = label_agreement(labels, reference)
            checks.append(
                BackendCheck(
                    backend=backend,
                    agreement=agreement,
                    agreement_fp32=label_agreement(labels, self._fp32_labels),
                    matches_reference=1 - agreement <= allowed,
                    miou=self._miou(labels),
                )
            )
        return checks, errors

    def _labels(self, path: Path, backend: str, precision: str | None) -> list[np.ndarray]:
        with open_backend(path, backend, precision=precision) as opened:
            return [opened.infer(batch)[0][0] for batch in self.batches]

    def _miou(self, labels: Sequence[np.ndarray]) -> float | None:
        if self._label_set is None:
            return None
        pairs = zip(self._truth, labels, strict=True)
        return confusion_from_pairs(pairs, self._label_set).miou


def run_unoptimized(model: onnx.ModelProto, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a graph in ONNX Runtime without optimisations, and get its first output for each batch.

    Nothing is fused: quantized values are rounded as the graph says, and all arithmetic is in float.
    """
    run = open_on_cpu(model, is_optimized=False)
    return [run(batch)[0] for batch in batches]


def open_labelled(
    model_path: Path,
    data_dir: Path | None,
    *,
    dataset: str | None = None,
    label_set: str | Path | None = None,
) -> LabelledSplit | None:
    """Open the val split of a dataset; ``None`` without a folder.

    Args:
        model_path: The artefact.
        data_dir: The dataset's folder.
        dataset: Name of the dataset; ``None`` chooses by the artefact's classes.
        label_set: Name or file of the classes; ``None`` takes those of the dataset or of the artefact.

    Raises:
        DatasetError: The split is missing, or has another number of classes than the artefact.
        LabelSetError: The label set is invalid.
    """
    if data_dir is None:
        return None
    return open_split_of_model(
        label_set_from_dict(ModelCard.from_file(model_path).classes),
        data_dir,
        "val",
        dataset=dataset,
        label_set=load_label_set(label_set) if label_set else None,
    )
