"""mIoU of a checkpoint or an artefact on a dataset, at the resolution of the labels."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError
from esnet.data.labelled import LabelledSplit, nearest_size
from esnet.labels import LabelSet, label_set_from_dict
from esnet.metrics import ConfusionMatrix, confusion_from_pairs
from runtime.backend import AUTO, Choice, choose_backend
from runtime.files import sha256_of
from runtime.machine.gpus import no_such_gpu, parse_device
from runtime.media.frames import resize_frame
from runtime.segmenter import Segmenter

if TYPE_CHECKING:  # torch is imported for checkpoints alone
    import torch

ARTEFACT_SUFFIXES = (".onnx", ".engine", ".plan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """An open model that labels images."""

    predict: Callable[[np.ndarray], np.ndarray]
    """Labels an image, RGB uint8 (H, W, 3) of any size; returns class indices, uint8 (H', W')."""
    label_set: LabelSet
    """Classes of the model."""
    description: str
    """File, backend, precision and device, for the report."""
    sha256: str
    """Hash of the file."""
    size: str
    """Input size of the network, HEIGHTxWIDTH; ``native`` for the size of each image."""
    close: Callable[[], None] = lambda: None
    """Frees the resources of the model."""
    choice: Choice | None = None
    """Backend and precision of an artefact, with the reasons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyReport:
    """Accuracy of a model on a dataset split."""

    predictor: Predictor
    """The evaluated model."""
    split: LabelledSplit
    """The dataset split."""
    num_images: int
    """Number of evaluated images."""
    matrix: ConfusionMatrix
    """Confusion matrix of all images."""

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON; a class that does not occur has IoU ``null``."""
        iou = [None if np.isnan(value) else float(value) for value in self.matrix.iou_per_class]
        return {
            "model": self.predictor.description,
            "sha256": self.predictor.sha256,
            "dataset": self.split.dataset,
            "split": self.split.split,
            "num_images": self.num_images,
            "size": self.predictor.size,
            "miou": self.matrix.miou,
            "pixel_accuracy": self.matrix.pixel_accuracy,
            "iou": dict(zip(self.split.label_set.class_names, iou, strict=True)),
            "confusion": self.matrix.counts.tolist(),
            "environment": describe_environment(),
        }


def open_predictor(
    model: str | Path,
    *,
    size_hw: tuple[int, int] | None = None,
    backend: str | None = None,
    precision: str | None = None,
    device: str | int | None = None,
    allow_mismatch: bool = False,
) -> Predictor:
    """Open a checkpoint, shipped weights or an artefact; the file suffix decides.

    ``size_hw`` is for checkpoints; ``None`` keeps the size of each image, rounded to multiples of 8.
    ``backend``, ``precision`` (see ``choose_backend``) and ``allow_mismatch`` are for artefacts.
    ``device`` is as for ``open_backend``; for a checkpoint, ``None`` takes the first GPU.

    Raises:
        BenchmarkError: An option that does not apply to this kind of model.
        EsnetError: The artefact or the checkpoint cannot be opened.
    """
    if Path(model).suffix.lower() in ARTEFACT_SUFFIXES:
        if size_hw is not None:
            raise BenchmarkError(
                "--size is for checkpoints: an artefact works at the size it was exported for",
                hint="export it at another size: esnet-export to-onnx WEIGHTS --size HEIGHTxWIDTH",
            )
        choice = choose_backend(model, backend or AUTO, precision, device)
        segmenter = Segmenter.open(
            model,
            backend=choice.backend,
            precision=choice.precision,
            device=device,
            allow_mismatch=allow_mismatch,
        )
        return replace(predictor_from_segmenter(segmenter, Path(model)), choice=choice)
    if not {backend, precision} <= {None, AUTO}:
        raise BenchmarkError(
            f"{model} is a checkpoint, run by torch in fp32: --backend and --precision are for artefacts",
            hint=f"{shlex.join(['esnet-export', 'to-onnx', str(model)])}; then evaluate the .onnx file",
        )
    return _predictor_from_checkpoint(model, size_hw, device)


def predictor_from_segmenter(segmenter: Segmenter, path: Path) -> Predictor:
    """Wrap an open artefact and its path."""
    card, backend = segmenter.card, segmenter.backend
    return Predictor(
        predict=segmenter.segment,
        label_set=label_set_from_dict(card.classes),
        description=f"{path.name}, {backend.name} {backend.precision} on {backend.device}",
        sha256=sha256_of(path),
        size="x".join(map(str, card.size_hw)),
        close=segmenter.close,
    )


def _predictor_from_checkpoint(
    weights: str | Path, size_hw: tuple[int, int] | None, gpu: str | int | None
) -> Predictor:
    import torch

    from esnet.checkpoint import load_checkpoint
    from esnet.model import normalise

    checkpoint = load_checkpoint(weights)
    device = _torch_device(gpu)
    network, family = checkpoint.network.to(device), checkpoint.family

    @torch.inference_mode()
    def predict(image: np.ndarray) -> np.ndarray:
        resized = resize_frame(image, size_hw or nearest_size(image.shape))
        images_NHWC = torch.from_numpy(resized)[None].to(device)
        logits_NCHW = network(normalise(images_NHWC, family.mean, family.std))
        labels: np.ndarray = logits_NCHW.argmax(1)[0].byte().cpu().numpy()
        return labels

    return Predictor(
        predict=predict,
        label_set=checkpoint.label_set,
        description=f"{checkpoint.path.name}, torch {torch.__version__} fp32 on {device}",
        sha256=checkpoint.sha256,
        size="x".join(map(str, size_hw)) if size_hw else "native",
    )


def _torch_device(gpu: str | int | None) -> torch.device:
    """Get torch's device of a GPU; ``None`` is the first, or the CPU without a GPU."""
    import torch

    count = torch.cuda.device_count()
    if gpu is None:
        return torch.device("cuda" if count else "cpu")
    if (index := parse_device(gpu)) >= count:
        raise no_such_gpu(index, count, library=f"torch {torch.__version__}")
    return torch.device("cuda", index)


def evaluate(
    predictor: Predictor,
    split: LabelledSplit,
    *,
    max_images: int | None = None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> AccuracyReport:
    """Label the images of a split and compute the confusion matrix.

    ``max_images`` images are evenly spread over the split; ``None`` takes all. ``track`` wraps their indices,
    for a progress bar.

    Raises:
        DatasetError: An image or a mask cannot be read.
    """
    count = min(max_images or len(split), len(split))
    indices = [round(index) for index in np.linspace(0, len(split) - 1, count)]
    samples = (split[index] for index in track(indices))
    pairs = ((sample.labels, predictor.predict(sample.image)) for sample in samples)
    return AccuracyReport(
        predictor=predictor,
        split=split,
        num_images=len(indices),
        matrix=confusion_from_pairs(pairs, split.label_set),
    )
