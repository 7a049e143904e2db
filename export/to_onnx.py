"""From a weights file to a verified ONNX artefact with its card."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import torch

from esnet.checkpoint import SHIPPED_WEIGHTS, Checkpoint, load_checkpoint
from esnet.data.scenes import street_scene
from esnet.labels import LABEL_SETS, LabelSet, label_set_for
from export.errors import ExportError
from export.graph.editor import op_counts
from export.metadata import card_from_plan, with_card
from export.plan import ExportPlan, graph_from_network, unfused_graph
from export.verify import Parity, measure_parity, require_parity
from runtime.artefact.card import LABELS, ModelCard
from runtime.backend import installed_backends
from runtime.errors import BackendUnavailable
from runtime.files import atomic_path, sha256_of
from runtime.media.sources import open_source

_NUM_PARITY_FRAMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export wrote and how it was checked."""

    path: Path
    """The artefact."""
    card: ModelCard
    """Its card."""
    sha256: str
    """Hash of the file."""
    counts_before: dict[str, int]
    """Operators of the published graph."""
    counts_after: dict[str, int]
    """Operators of the artefact."""
    parity: Parity | None
    """The comparison with torch; ``None`` if it was left out."""


def export_onnx(
    weights: str | Path,
    output: Path | None = None,
    plan: ExportPlan | None = None,
    *,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    label_set: str | None = None,
    frames: Path | None = None,
    verify: bool = True,
    command: Sequence[str] = (),
) -> ExportReport:
    """Export a checkpoint.

    Args:
        weights: File, or name of shipped weights.
        output: File to write, replaced if it exists; ``None`` makes a telling name beside the weights.
        plan: Size, batch, form, precision; its mean and deviation are replaced by the checkpoint's own.
        mean: Overrides the checkpoint's mean, 0-1 scale.
        std: Overrides the checkpoint's deviation.
        label_set: Name of the label set; ``None`` takes the checkpoint's, or the one with as many classes.
        frames: Image, folder or video to compare on; ``None`` takes generated street scenes.
        verify: Whether to compare with torch before anything is written.
        command: The command line, for the card.

    Raises:
        CheckpointError: The weights cannot be loaded.
        LabelSetError: The label set does not fit.
        ParityError: The artefact is out of tolerance; nothing was written.
        BackendUnavailable: Nothing here can run the comparison.
        OSError: The output cannot be written.
    """
    if verify and not installed_backends():
        raise BackendUnavailable(
            "nothing here can run the exported graph for the comparison with torch",
            hint="pip install 'esnet-deploy[cpu]', or export with --no-verify",
        )
    checkpoint = load_checkpoint(weights)
    plan = replace(
        plan or ExportPlan(), mean=mean or checkpoint.family.mean, std=std or checkpoint.family.std
    )
    labels = _label_set(checkpoint, label_set)
    path = output or default_output(weights, checkpoint, plan)
    _check_output(path, checkpoint.path)
    pictures, pictures_name = _parity_frames(frames, plan) if verify else ([], "")
    with atomic_path(path) as temporary:
        model = graph_from_network(checkpoint.network, plan)
        card = card_from_plan(
            plan,
            labels,
            name=_name(weights, checkpoint),
            source=_source(checkpoint),
            created=_created(command),
        )
        parity = None
        if verify:
            parity = measure_parity(
                checkpoint.network, model, plan, card, pictures, frames_name=pictures_name
            )
            require_parity(parity, plan.precision)
            card = replace(card, parity=parity.as_dict())
        onnx.save(with_card(model, card), temporary)
    return ExportReport(
        path=path,
        card=card,
        sha256=sha256_of(path),
        counts_before=op_counts(unfused_graph(checkpoint.network, plan).graph.node),
        counts_after=op_counts(model.graph.node),
        parity=parity,
    )


def default_output(weights: str | Path, checkpoint: Checkpoint, plan: ExportPlan) -> Path:
    """Name the artefact after weights, size, precision and form; shipped weights are exported to here."""
    height, width = plan.size_hw
    folder = Path() if str(weights) in SHIPPED_WEIGHTS else checkpoint.path.parent
    parts = [_name(weights, checkpoint), f"{height}x{width}", plan.precision, plan.optimized_for]
    if plan.outputs != (LABELS,):
        parts.append("-".join(plan.outputs))
    return folder / f"{'_'.join(parts)}.onnx"


def _label_set(checkpoint: Checkpoint, asked: str | None) -> LabelSet:
    """Choose the label set asked for, else the one that the file names and we know, else by the classes."""
    stored = checkpoint.metadata.get("label_set")
    name = asked or (stored if stored in LABEL_SETS else None)
    return label_set_for(checkpoint.network.config.num_classes, name=name)


def _check_output(path: Path, weights_path: Path) -> None:
    """Refuse an output that cannot be meant, before any work is done."""
    if not path.parent.is_dir():
        raise ExportError(
            f"there is no folder {path.parent} to write to",
            hint="make it, or name another file: -o",
        )
    problem = None
    if path.is_dir():
        problem = "is a folder"
    elif path.exists() and not path.is_file():
        problem = "is not a plain file"
    elif path.exists() and path.samefile(weights_path):
        problem = "is the weights file itself"
    if problem:
        raise ExportError(f"output {path} {problem}", hint="name another file: -o model.onnx")


def _name(weights: str | Path, checkpoint: Checkpoint) -> str:
    """Name shipped weights by their name, others by their file."""
    return str(weights) if str(weights) in SHIPPED_WEIGHTS else checkpoint.path.stem


def _source(checkpoint: Checkpoint) -> dict[str, str]:
    """Tell file, hash and family of the weights, and what the file says of itself."""
    return {
        "weights": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "family": checkpoint.family.name,
        **{f"file: {key}": value for key, value in sorted(checkpoint.metadata.items())},
    }


def _created(command: Sequence[str]) -> dict[str, str]:
    return {
        "command": shlex.join(command),
        "esnet-deploy": _version("esnet-deploy"),
        "onnx": onnx.__version__,
        "torch": torch.__version__,
    }


def _parity_frames(frames: Path | None, plan: ExportPlan) -> tuple[list[np.ndarray], str]:
    """Take the first readable frames of the source, or generate some."""
    if frames is None:
        scenes = [street_scene(plan.size_hw, seed=seed).image for seed in range(_NUM_PARITY_FRAMES)]
        return scenes, "generated street scenes"
    source = open_source(frames)
    pictures = [frame.image for frame, _ in zip(source, range(_NUM_PARITY_FRAMES), strict=False)]
    if not pictures:
        raise ExportError(f"no frame of {frames} could be read: {'; '.join(source.skipped[:3])}")
    return pictures, f"frames of {frames.name}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "from its source folder"
