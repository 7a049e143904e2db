"""``to-onnx``: export a weights file to a verified ONNX artefact with its card."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import onnx
import torch

from esnet.checkpoint import CLASSES_KEY, SHIPPED_WEIGHTS, Checkpoint, load_checkpoint
from esnet.labels import load_label_set
from export.graph.editor import op_counts
from export.graph_builder import onnx_from_network
from export.metadata import card_from_plan, require_artefact_output, with_card
from export.parity import Parity, parity_frames, require_parity
from export.plan import ExportPlan, transform_graph
from export.verify import measure_parity
from runtime.artefact.card import LABELS, ModelCard
from runtime.files import atomic_path, sha256_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """Result of an export."""

    path: Path
    """ONNX artefact."""
    card: ModelCard
    """Its card."""
    sha256: str
    """Hash of the file."""
    counts_before: dict[str, int]
    """Operator counts of the unfused graph."""
    counts_after: dict[str, int]
    """Operator counts of the artefact."""
    parity: Parity | None
    """Comparison with torch; ``None`` if it was skipped."""


def export_onnx(
    weights: str | Path,
    output: Path | None = None,
    plan: ExportPlan | None = None,
    *,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    label_set: str | Path | None = None,
    frames: Path | None = None,
    verify: bool = True,
    command: Sequence[str] = (),
) -> ExportReport:
    """Export a checkpoint to ONNX and compare the result with torch.

    Args:
        weights: Checkpoint file, or name of shipped weights.
        output: File to write, replaced if it exists; ``None`` names it after weights and settings.
        plan: Export settings; ``None`` takes the defaults. Its mean and std are not used.
        mean: RGB mean, 0-1 scale; ``None`` takes that of the checkpoint's family.
        std: RGB standard deviation, 0-1 scale; ``None`` as for ``mean``.
        label_set: Name or file of the label set; ``None`` takes the checkpoint's, or numbers the classes.
        frames: Image, folder or video to compare on; ``None`` generates street scenes.
        verify: False skips the comparison with torch.
        command: Command line, for the card.

    Raises:
        CheckpointError: The weights cannot be loaded.
        InvalidInput: The output path cannot be written.
        LabelSetError: The label set is invalid or has another number of classes.
        ParityError: The artefact is out of tolerance; nothing was written.
        BackendUnavailable: No installed backend can run the comparison.
        OSError: The output cannot be written.

    Example:
        >>> plan = ExportPlan(size_hw=(64, 128), optimized_for="openvino")
        >>> report = export_onnx("camvid", Path("camvid.onnx"), plan)
        >>> report.parity.equal_labels > 0.999, report.card.outputs
        (True, ('labels',))
    """
    checkpoint = load_checkpoint(weights)
    mean, std = mean or checkpoint.family.mean, std or checkpoint.family.std
    plan = replace(plan or ExportPlan(), mean=mean, std=std)
    network = checkpoint.network
    labels = (
        load_label_set(label_set, num_classes=network.config.num_classes)
        if label_set
        else checkpoint.label_set
    )
    # Artefacts of shipped weights are named after them and go to the working folder.
    stem = Path(weights) if str(weights) in SHIPPED_WEIGHTS else checkpoint.path.with_suffix("")
    path = output or stem.with_name(f"{stem.name}{_suffix(plan)}")
    require_artefact_output(path, source=checkpoint.path)
    images, frames_name = parity_frames(frames, plan.size_hw) if verify else ([], "")
    with atomic_path(path) as temporary:
        unfused = onnx_from_network(network, plan.size_hw, plan.batch, plan.opset)
        model = transform_graph(unfused, plan)
        source, created = _source(checkpoint), _created(command)
        card = card_from_plan(plan, labels, name=stem.name, source=source, created=created)
        parity = None
        if verify:
            parity = measure_parity(network, unfused, model, plan, card, images, frames_name)
            require_parity(parity, plan.precision)
            card = replace(card, parity=asdict(parity))
        onnx.save(with_card(model, card), temporary)
    return ExportReport(
        path=path,
        card=card,
        sha256=sha256_of(path),
        counts_before=op_counts(unfused.graph.node),
        counts_after=op_counts(model.graph.node),
        parity=parity,
    )


def _suffix(plan: ExportPlan) -> str:
    """Describe size, precision and form in the file name of an artefact."""
    height, width = plan.size_hw
    outputs = "" if plan.outputs == (LABELS,) else f"_{'-'.join(plan.outputs)}"
    return f"_{height}x{width}_{plan.precision}_{plan.optimized_for}{outputs}.onnx"


def _source(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "weights": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "family": checkpoint.family.name,
        **{f"file: {k}": v for k, v in sorted(checkpoint.metadata.items()) if k != CLASSES_KEY},
    }


def _created(command: Sequence[str]) -> dict[str, str]:
    try:
        version = metadata.version("esnet-deploy")
    except metadata.PackageNotFoundError:
        version = "from its source folder"
    return {
        "command": shlex.join(command),
        "esnet-deploy": version,
        "onnx": onnx.__version__,
        "torch": torch.__version__,
    }
