"""The folder of a training run: its config.json, the check before a resume, and the exported weights."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save

from esnet.checkpoint import CLASSES_KEY, load_checkpoint
from esnet.data.labelled import LabelledSplit
from esnet.errors import TrainingError
from esnet.training.settings import RunSettings
from runtime.artefact.untrusted import parse_json
from runtime.files import atomic_path
from runtime.machine.machine import source_revision


def run_config(
    settings: RunSettings, splits: Sequence[LabelledSplit], origin: str, label_counts: list[int]
) -> dict[str, Any]:
    """Make the content of config.json: all that determines the result, and the software versions.

    Args:
        settings: Settings of the run.
        splits: Training and validation split.
        origin: Source of the initial weights.
        label_counts: Labelled pixels per class in the training split.
    """
    train, val = splits
    # The name "pictures" is part of the file format: runs with other keys could not be resumed.
    own_classes = {"label_set": settings.label_set.as_dict()} if settings.label_set else {}
    return {
        "recipe": asdict(settings.recipe),
        "dataset": settings.dataset,
        **own_classes,
        "train": {"split": train.split, "pictures": len(train), "label_counts": label_counts},
        "val": {"split": val.split, "pictures": len(val)},
        "init": origin,
        "seed": settings.seed,
        "made_with": {
            "revision": source_revision(),
            "torch": torch.__version__,
            "lightning": L.__version__,
            "python": platform.python_version(),
            "data_dir": str(settings.data_dir),
            "devices": settings.devices,
            "precision": settings.precision,
        },
    }


def checkpoint_metadata(
    settings: RunSettings, splits: Sequence[LabelledSplit], config: dict[str, Any]
) -> dict[str, str]:
    """Make the metadata of the run's checkpoints; all values are text, as safetensors requires."""
    recipe, (train, val) = settings.recipe, splits
    metadata = {
        "architecture": "esnet",
        "label_set": train.label_set.name,
        CLASSES_KEY: json.dumps(train.label_set.as_dict()),
        "trained_on": f"{train.dataset} {train.split}, {len(train)} images",
        "measured_on": f"{val.dataset} {val.split}, {len(val)} images",
        "size": f"{recipe.size_hw[0]}x{recipe.size_hw[1]}" if recipe.size_hw else "",
        "recipe": recipe.name,
        "epochs": str(recipe.total_epochs),
        "init": config["init"],
        "revision": config["made_with"]["revision"],
        "input": "RGB/255",
    }
    if recipe.quantization:
        scheme = f"int8, scheme {recipe.quantization}; val_miou is with fake quantization"
        metadata["quantization_aware"] = scheme
    return metadata


def open_run_folder(run_dir: Path, config: dict[str, Any]) -> Path | None:
    """Create a run's folder, or check that it holds a run with the same configuration.

    Returns:
        The checkpoint to resume from; ``None`` for a new run.

    Raises:
        TrainingError: The folder holds a run with other settings or a damaged one, or other files.
        CheckpointError: The checkpoint is damaged.
    """
    path = run_dir / "config.json"
    if path.is_file():
        try:
            stored = parse_json(path.read_bytes())
        except ValueError as error:
            raise TrainingError(
                f"{path} is damaged: {error}", hint="choose another folder: -o RUN"
            ) from error
        if not isinstance(stored, dict):
            raise TrainingError(f"{path} holds no settings", hint="choose another folder: -o RUN")
        changed = _differences(stored, json.loads(json.dumps(config)))
        if changed:
            raise TrainingError(
                f"{run_dir} holds a run with other settings: {'; '.join(changed)}",
                hint="resume it with the settings in its config.json, or choose another folder: -o",
            )
        last = run_dir / "last.ckpt"
        if not last.is_file():
            return None
        load_checkpoint(last)  # Lightning's own errors are tracebacks
        return last
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise TrainingError(
            f"{run_dir} contains files that are not a run", hint="choose a new folder: -o RUN"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return None


def write_weights(checkpoint_path: Path) -> None:
    """Export a checkpoint's weights to a safetensors file beside it; nothing if there is no checkpoint."""
    if not checkpoint_path.is_file():
        return
    checkpoint = load_checkpoint(checkpoint_path)
    tensors = {key: value.contiguous() for key, value in checkpoint.network.state_dict().items()}
    with atomic_path(checkpoint_path.with_suffix(".safetensors")) as temporary:
        temporary.write_bytes(save(tensors, metadata=dict(checkpoint.metadata)))


def _differences(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """List the changed settings; ``made_with`` may change between starts."""
    changed = []
    for key in sorted({*stored, *asked} - {"made_with"}):
        before, now = stored.get(key), asked.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            changed += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            changed.append(f"{prefix}{key} was {before}, now {now}")
    return changed
