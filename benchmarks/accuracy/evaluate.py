"""mIoU of a checkpoint or an artefact on a dataset, at the resolution of the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError
from benchmarks.models import precisions_of
from esnet.data.datasets import DATASETS, open_split
from esnet.data.labelled import LabelledSplit, nearest_size
from esnet.metrics import ConfusionMatrix, confusion_from_pairs
from runtime.files import sha256_of
from runtime.media.frames import resize_frame
from runtime.segmenter import Segmenter

ARTEFACT_SUFFIXES = (".onnx", ".engine", ".plan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """An open model that labels images."""

    predict: Callable[[np.ndarray], np.ndarray]
    """Labels an image, RGB uint8 (H, W, 3) of any size; returns class indices, uint8 (H', W')."""
    class_names: tuple[str, ...]
    """Class names, in the order of the indices."""
    label_set: str
    """Name of the label set."""
    description: str
    """File, backend, precision and device, for the report."""
    sha256: str
    """Hash of the file."""
    size_hw: tuple[int, int] | None
    """Input size of the network; ``None`` for the size of each image."""
    close: Callable[[], None] = lambda: None
    """Frees the resources of the model."""

    @property
    def size_text(self) -> str:
        """Input size as text; ``native`` for the size of each image."""
        return f"{self.size_hw[0]}x{self.size_hw[1]}" if self.size_hw else "native"


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
    environment: dict[str, str]
    """Machine, libraries and command."""

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON; a class that does not occur has IoU ``null``."""
        iou = [None if np.isnan(value) else float(value) for value in self.matrix.iou_per_class]
        return {
            "model": self.predictor.description,
            "sha256": self.predictor.sha256,
            "dataset": self.split.dataset,
            "split": self.split.split,
            "num_images": self.num_images,
            "size": self.predictor.size_text,
            "miou": self.matrix.miou,
            "pixel_accuracy": self.matrix.pixel_accuracy,
            "iou": dict(zip(self.split.label_set.class_names, iou, strict=True)),
            "confusion": self.matrix.counts.tolist(),
            "environment": self.environment,
        }


def open_predictor(
    model: str | Path,
    *,
    size_hw: tuple[int, int] | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Predictor:
    """Open a checkpoint, shipped weights or an artefact; the file suffix decides.

    Args:
        model: Path, or name of shipped weights.
        size_hw: Checkpoints: input size; ``None`` keeps the size of each image, rounded to multiples of 8.
        backend: Artefacts: backend; ``None`` takes the fastest.
        precision: Artefacts: precision; ``None`` takes that of the artefact.

    Raises:
        BenchmarkError: An option that does not apply to this kind of model.
        EsnetError: The artefact or the checkpoint cannot be opened.
    """
    if Path(model).suffix.lower() in ARTEFACT_SUFFIXES:
        if size_hw is not None:
            raise BenchmarkError(
                "--size is for checkpoints: an artefact works at the size it was exported for",
                hint=f"esnet-export to-onnx WEIGHTS --size {size_hw[0]}x{size_hw[1]}",
            )
        segmenter = Segmenter.open(model, backend=backend, precision=precision)
        return predictor_from_segmenter(segmenter, Path(model))
    if backend is not None or precision is not None:
        raise BenchmarkError(
            f"{model} is a checkpoint, run by torch in fp32: --backend and --precision are for artefacts",
            hint=f"esnet-export to-onnx {model}, then evaluate the .onnx file",
        )
    return _predictor_from_checkpoint(model, size_hw)


def predictor_from_segmenter(segmenter: Segmenter, path: Path) -> Predictor:
    """Wrap an open artefact and its path."""
    card, backend = segmenter.card, segmenter.backend
    return Predictor(
        predict=segmenter.segment,
        class_names=card.class_names,
        label_set=card.label_set,
        description=f"{path.name}, {backend.name} {backend.precision} on {backend.device}",
        sha256=sha256_of(path),
        size_hw=card.size_hw,
        close=segmenter.close,
    )


def _predictor_from_checkpoint(weights: str | Path, size_hw: tuple[int, int] | None) -> Predictor:
    import torch

    from esnet.checkpoint import load_checkpoint
    from esnet.labels import LABEL_SETS, label_set_for
    from esnet.model import normalise

    checkpoint = load_checkpoint(weights)
    name = checkpoint.metadata.get("label_set")
    label_set = label_set_for(
        checkpoint.network.config.num_classes, name=name if name in LABEL_SETS else None
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        class_names=label_set.class_names,
        label_set=label_set.name,
        description=f"{checkpoint.path.name}, torch {torch.__version__} fp32 on {device}",
        sha256=checkpoint.sha256,
        size_hw=size_hw,
    )


def expand_precisions(
    models: Sequence[str], precisions: Sequence[str | None]
) -> list[tuple[str, str | None]]:
    """List the runs (model, precision); see ``precisions_of`` for artefacts."""
    runs = []
    for model in models:
        is_artefact = Path(model).suffix.lower() in ARTEFACT_SUFFIXES
        own = precisions_of(Path(model), precisions) if is_artefact else precisions
        runs += [(model, precision) for precision in own]
    return runs


def evaluate(
    predictor: Predictor,
    split: LabelledSplit,
    *,
    max_images: int | None = None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> AccuracyReport:
    """Label the images of a split and compute the confusion matrix.

    It takes ``max_images`` images, evenly spread over the split, or all. ``track`` wraps their indices, for a
    progress bar.

    Raises:
        BenchmarkError: The model and the dataset have different numbers of classes.
        DatasetError: An image cannot be read.
    """
    found, expected = len(predictor.class_names), split.label_set.num_classes
    if found != expected:
        raise BenchmarkError(
            f"the model has {found} classes of {predictor.label_set}, {split.dataset} has {expected}",
            hint="select the dataset that the model was trained for: --dataset",
        )
    indices = spread_indices(len(split), max_images)
    samples = (split[index] for index in track(indices))
    pairs = ((sample.labels, predictor.predict(sample.image)) for sample in samples)
    return AccuracyReport(
        predictor=predictor,
        split=split,
        num_images=len(indices),
        matrix=confusion_from_pairs(pairs, split.label_set),
        environment=describe_environment(),
    )


def open_split_for(
    predictor: Predictor, data_dir: Path, dataset: str | None, split: str
) -> LabelledSplit:
    """Open a dataset split; ``dataset=None`` takes the dataset of the model's label set.

    Raises:
        BenchmarkError: The model's label set is not that of a dataset.
        DatasetError: The split does not exist.
    """
    dataset = dataset or predictor.label_set
    if dataset not in DATASETS:
        raise BenchmarkError(
            f"the model's label set {predictor.label_set!r} is not that of a dataset",
            hint=f"select one: --dataset {' or '.join(DATASETS)}",
        )
    return open_split(dataset, data_dir, split)


def spread_indices(total: int, count: int | None) -> list[int]:
    """Select ``count`` of ``total`` indices, evenly spread; ``None`` selects all."""
    if count is None or count >= total:
        return list(range(total))
    return [round(index) for index in np.linspace(0, total - 1, count)]
