"""Models opened for measuring: on every backend at every precision, named, and held against a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet
from esnet.metrics import label_agreement
from runtime.artefact.card import ModelCard
from runtime.backend import identify_artefact
from runtime.errors import EsnetError, ModelFileError
from runtime.files import sha256_of
from runtime.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenModel:
    """One model on one backend at one precision."""

    path: Path
    """The artefact."""
    segmenter: Segmenter
    """It, open."""
    name: str
    """For tables: what tells it from the others."""
    reference: Path | None
    """Artefact whose fp32 labels its own are held against; ``None`` where none is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a figure is of; the first fields of every result."""

    model: str
    """File name."""
    sha256: str
    """Hash of the file that was timed."""
    name: str
    """For tables: what tells it from the others."""
    backend: str
    """Backend that ran it."""
    precision: str
    """Arithmetic that really ran."""
    device: str
    """What it ran on."""
    size_hw: tuple[int, int]
    """Input size of the artefact."""
    reference: str | None
    """File that its labels were held against; ``None``: unchecked."""
    agreement: float | None
    """Share of pixels labelled as the reference labels them in fp32, 0 to 1."""
    miou: float | None
    """On labelled data, 0 to 1; ``None`` where it was not asked for."""


def open_models(
    models: Sequence[Path],
    backends: Sequence[str | None],
    precisions: Sequence[str | None],
    stack: ExitStack,
    *,
    reference: Path | None = None,
    on_open: Callable[[Segmenter], None] = lambda segmenter: None,
) -> list[OpenModel]:
    """Open every model on every backend at every precision; the stack closes them.

    Args:
        models: Artefacts.
        backends: Names; ``None`` is the fastest that is installed.
        precisions: Names; ``None`` is the artefact's own. INT8 and engines have no other.
        stack: Closes what is opened.
        reference: The fp32 artefact; ``None`` looks for one of the same weights and size beside each model.
        on_open: Told of each model that was opened.

    Raises:
        ModelFileError: A model cannot be opened.
        InvalidInput: A backend or precision is not to be had.
    """
    opened: list[tuple[Path, Segmenter]] = []
    for path in models:
        for backend in backends:
            for precision in precisions_of(path, precisions):
                segmenter = Segmenter.open(path, backend=backend, precision=precision, timing=True)
                opened.append((path, stack.enter_context(segmenter)))
                on_open(segmenter)
    references = {path: reference or find_reference(path) for path in models}
    return [
        OpenModel(path=path, segmenter=segmenter, name=name, reference=references[path])
        for name, (path, segmenter) in zip(_names(opened), opened, strict=True)
    ]


def precisions_of(path: Path, precisions: Sequence[str | None]) -> Sequence[str | None]:
    """Choose the precisions a model can be asked for; INT8 and engines have theirs in them."""
    card, builder = identify_artefact(path)
    return [None] if card.precision == "int8" or builder is not None else precisions


def find_reference(path: Path) -> Path | None:
    """Find the fp32 artefact of the same weights and size: the model itself, or a file beside it."""
    card, builder = identify_artefact(path)
    if builder is None and card.precision == "fp32":
        return path
    weights = card.source.get("sha256")
    for other in sorted(path.parent.glob("*.onnx")):
        try:
            found = ModelCard.from_file(other)
        except ModelFileError:
            continue
        is_same = found.source.get("sha256") == weights and found.size_hw == card.size_hw
        if weights and is_same and found.precision == "fp32":
            return other
    return None


def check_labels(opened: Sequence[OpenModel], frames: FrameSet) -> list[float | None]:
    """Get the share of pixels that each model labels as its reference does in fp32; ``None``: unchecked.

    Raises:
        BenchmarkError: The reference gives labels of another size, or cannot be opened.
    """
    truths: dict[Path, list[np.ndarray]] = {}
    shares: list[float | None] = []
    for model in opened:
        if model.reference is None:
            shares.append(None)
            continue
        if model.reference not in truths:
            truths[model.reference] = _reference_labels(model.reference, frames)
        own = labels_of(model.segmenter, frames)
        shares.append(label_agreement(own, truths[model.reference]))
    return shares


def identify(model: OpenModel, agreement: float | None, miou: float | None) -> Identity:
    """Write down what a model is, beside how right it is."""
    backend, card = model.segmenter.backend, model.segmenter.card
    return Identity(
        model=model.path.name,
        sha256=sha256_of(model.path),
        name=model.name,
        backend=backend.name,
        precision=backend.precision,
        device=backend.device,
        size_hw=card.size_hw,
        reference=None if model.reference is None else model.reference.name,
        agreement=agreement,
        miou=miou,
    )


def labels_of(segmenter: Segmenter, frames: FrameSet) -> list[np.ndarray]:
    """Label every frame."""
    return [segmenter.segment(frame) for frame in frames.frames]


def _reference_labels(path: Path, frames: FrameSet) -> list[np.ndarray]:
    try:
        with Segmenter.open(path, precision="fp32") as segmenter:
            return labels_of(segmenter, frames)
    except EsnetError as error:
        raise BenchmarkError(
            f"the reference {path} cannot be run in fp32: {error}",
            hint="--reference takes an fp32 ONNX artefact of the same weights",
        ) from error


def _names(opened: Sequence[tuple[Path, Segmenter]]) -> list[str]:
    """Name each subject by backend and the precision it runs at, and by its file if there are several."""
    is_one_file = len({path for path, _ in opened}) == 1
    names = [
        ("" if is_one_file else f"{path.stem}, ")
        + f"{segmenter.backend.name} {segmenter.backend.precision}"
        for path, segmenter in opened
    ]
    # Files of one name in two folders: numbered.
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]
