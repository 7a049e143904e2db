"""Accuracy on a dataset: mIoU of a checkpoint or of any artefact, on the grid of the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError
from esnet.data.datasets import DATASETS, open_split
from esnet.data.labelled import LabelledSplit, nearest_size
from esnet.metrics import ConfusionMatrix
from runtime.files import sha256_of
from runtime.media.frames import resize_frame, resize_map
from runtime.segmenter import Segmenter

ARTEFACT_SUFFIXES = (".onnx", ".engine", ".plan")


class Predictor(Protocol):
    """Something that labels pictures, and what it says of itself."""

    class_names: tuple[str, ...]
    """Its classes, in the order of its labels."""
    label_set: str
    """Name of its label set."""
    description: str
    """What runs, for people."""
    sha256: str
    """Hash of the file that was opened."""
    size_hw: tuple[int, int] | None
    """Size the network works at; ``None`` for that of the picture."""

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Label a picture RGB uint8 (H, W, 3): uint8 (H, W)."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class OpenPredictor:
    """An exported model through ``Segmenter``, as its users run it."""

    def __init__(self, segmenter: Segmenter, path: Path) -> None:
        """Take an open artefact, and the file it is of."""
        self._segmenter = segmenter
        card, opened = segmenter.card, segmenter.backend
        self.class_names, self.label_set = card.class_names, card.label_set
        self.size_hw: tuple[int, int] | None = card.size_hw
        self.description = f"{path.name}, {opened.name} {opened.precision} on {opened.device}"
        self.sha256 = sha256_of(path)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Label a picture of any size."""
        return self._segmenter.segment(image)

    def close(self) -> None:
        """Close the backend."""
        self._segmenter.close()


class CheckpointPredictor:
    """A checkpoint in torch, fp32."""

    def __init__(self, weights: str | Path, size_hw: tuple[int, int] | None) -> None:
        """Load the weights; without ``size_hw``, pictures keep their size, to the nearest multiples of 8."""
        import torch

        from esnet.checkpoint import load_checkpoint
        from esnet.labels import LABEL_SETS, label_set_for

        checkpoint = load_checkpoint(weights)
        stored = checkpoint.metadata.get("label_set")
        labels = label_set_for(
            checkpoint.network.config.num_classes, name=stored if stored in LABEL_SETS else None
        )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = checkpoint.network.to(self._device)
        self._mean = np.asarray(checkpoint.family.mean, np.float32)
        self._std = np.asarray(checkpoint.family.std, np.float32)
        self.class_names, self.label_set = labels.class_names, labels.name
        self.size_hw = size_hw
        self.description = (
            f"{checkpoint.path.name}, torch {torch.__version__} fp32 on {self._device}"
        )
        self.sha256 = checkpoint.sha256

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Label a picture of any size."""
        import torch

        scaled = resize_frame(image, self.size_hw or nearest_size(image.shape)) / np.float32(255)
        normalised = (scaled - self._mean) / self._std
        frames = torch.from_numpy(normalised.transpose(2, 0, 1)[None]).to(self._device)
        with torch.inference_mode():
            labels = self._network(frames).argmax(1)[0].byte().cpu().numpy()
        return resize_map(labels, (image.shape[0], image.shape[1]))

    def close(self) -> None:
        """Nothing is held but memory."""


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """How well a model labels a split."""

    model: str
    """What ran."""
    sha256: str
    """Hash of the evaluated file."""
    dataset: str
    """Name of the dataset."""
    split: str
    """Name of the split."""
    num_images: int
    """Pictures evaluated."""
    size_hw: tuple[int, int] | None
    """Size the network worked at; ``None`` for that of each picture."""
    class_names: tuple[str, ...]
    """The classes."""
    matrix: ConfusionMatrix
    """All counts."""
    environment: dict[str, str]
    """Machine, libraries, command."""

    @property
    def miou(self) -> float:
        """Mean IoU, 0 to 1."""
        return self.matrix.miou

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a class that does not occur has ``null``."""
        iou = self.matrix.iou_per_class
        return {
            "model": self.model,
            "sha256": self.sha256,
            "dataset": self.dataset,
            "split": self.split,
            "num_images": self.num_images,
            "size": f"{self.size_hw[0]}x{self.size_hw[1]}" if self.size_hw else "native",
            "miou": self.miou,
            "pixel_accuracy": self.matrix.pixel_accuracy,
            "iou": {
                name: None if np.isnan(value) else float(value)
                for name, value in zip(self.class_names, iou, strict=True)
            },
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
    """Open a checkpoint, the name of shipped weights, or an artefact, by the file's suffix.

    Raises:
        BenchmarkError: Options that do not go with the kind of model.
        EsnetError: The artefact cannot be opened.
        CheckpointError: The checkpoint cannot be loaded.
    """
    if Path(model).suffix.lower() in ARTEFACT_SUFFIXES:
        if size_hw is not None:
            raise BenchmarkError(
                "--size is for checkpoints: an artefact works at the size it was exported for",
                hint=f"esnet-export to-onnx WEIGHTS --size {size_hw[0]}x{size_hw[1]}",
            )
        segmenter = Segmenter.open(model, backend=backend, precision=precision)
        return OpenPredictor(segmenter, Path(model))
    if backend is not None or precision is not None:
        raise BenchmarkError(
            f"{model} is a checkpoint, run by torch in fp32: --backend and --precision are for artefacts",
            hint=f"esnet-export to-onnx {model}, then evaluate the .onnx file",
        )
    return CheckpointPredictor(model, size_hw)


def evaluate(
    predictor: Predictor,
    split: LabelledSplit,
    *,
    max_images: int | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> AccuracyReport:
    """Label every picture of a split and count.

    Args:
        predictor: What labels.
        split: Pictures and labels.
        max_images: Evaluate so many, spread evenly over the split; ``None`` takes all.
        on_image: Called with (done, total) after each picture.

    Raises:
        BenchmarkError: The model's classes are not those of the dataset.
        DatasetError: A picture cannot be read.
    """
    _check_classes(predictor, split)
    indices = spread_indices(len(split), max_images)
    matrix = ConfusionMatrix(split.label_set.num_classes, split.label_set.ignore_index)
    for done, index in enumerate(indices, start=1):
        sample = split[index]
        matrix.update(sample.labels, predictor.predict(sample.image))
        on_image(done, len(indices))
    return AccuracyReport(
        model=predictor.description,
        sha256=predictor.sha256,
        dataset=split.dataset,
        split=split.split,
        num_images=len(indices),
        size_hw=predictor.size_hw,
        class_names=split.label_set.class_names,
        matrix=matrix,
        environment=describe_environment(),
    )


def open_split_for(
    predictor: Predictor, data_dir: Path, dataset: str | None, split: str
) -> LabelledSplit:
    """Find the split to evaluate on; without a name, the dataset is the one of the model's classes.

    Raises:
        BenchmarkError: The dataset cannot be told from the model.
        DatasetError: The split is not there.
    """
    dataset = dataset or predictor.label_set
    if dataset not in DATASETS:
        raise BenchmarkError(
            f"the model's label set {predictor.label_set!r} is not that of a dataset",
            hint=f"say which one it is: --dataset {' or '.join(DATASETS)}",
        )
    return open_split(dataset, data_dir, split)


def spread_indices(total: int, count: int | None) -> list[int]:
    """Choose ``count`` of ``total`` indices, evenly spread; all of them for ``None``."""
    if count is None or count >= total:
        return list(range(total))
    return [round(index) for index in np.linspace(0, total - 1, count)]


def _check_classes(predictor: Predictor, split: LabelledSplit) -> None:
    ours, theirs = split.label_set.num_classes, len(predictor.class_names)
    if ours != theirs:
        raise BenchmarkError(
            f"the model scores {theirs} classes of {predictor.label_set}, {split.dataset} has {ours}",
            hint="evaluate on the dataset that the model was trained for: --dataset",
        )
