"""A training run: one folder that holds all there is to know about it, and continues where it stopped."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from safetensors.torch import save_file

from esnet.checkpoint import load_checkpoint
from esnet.data.datasets import open_split
from esnet.data.labelled import LabelledSplit
from esnet.errors import TrainingError
from esnet.families import AUTHORS
from esnet.model import ESNet, NetworkConfig
from esnet.training.allocator import keep_freed_memory
from esnet.training.class_weights import class_weights, label_counts
from esnet.training.recipe import Recipe
from esnet.training.run_log import RunLog
from esnet.training.task import MovingAverage, SegmentationTask
from esnet.training.views import EvalDataset, TrainDataset, training_loader, validation_loader

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_CACHE_DIR = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "esnet-deploy"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What to train on, from what, and with which machine."""

    dataset: str
    """``camvid`` or ``cityscapes``."""
    data_dir: Path
    """The dataset's folder."""
    run_dir: Path
    """The run's folder; it is made, or continued."""
    recipe: Recipe
    """How to train."""
    train_split: str = "train"
    """The split that is learnt."""
    val_split: str = "val"
    """The split that is measured."""
    validate_every: int = 5
    """Epochs between validations; the last epoch is always validated."""
    init: str | None = None
    """Weights to begin with, a file or the name of shipped ones; ``None`` begins from scratch."""
    seed: int = 0
    """Source of all chance."""
    accelerator: str = "auto"
    """``auto``, ``cpu`` or ``gpu``."""
    devices: int = 1
    """Devices of that kind, each trained on its share of every batch."""
    precision: Precision = "auto"
    """Arithmetic; ``auto`` is bf16 where the hardware has it, fp16 on other GPUs, else fp32."""
    workers: int = 1
    """Processes a device that draw views."""
    show_progress: bool = False
    """Whether a person watches: a progress bar instead of a line an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How a run ended."""

    run_dir: Path
    """Its folder."""
    epochs: int
    """Epochs it has trained, earlier starts included."""
    best_miou: float | None
    """Best validation mIoU, 0 to 1; ``None`` if it never came to a validation."""

    def as_text(self) -> str:
        """Say how it went and what to do next."""
        best = "not validated" if self.best_miou is None else f"best mIoU {self.best_miou:.4f}"
        weights = self.run_dir / "best.ckpt"
        return f"trained   {self.epochs} epochs, {best}\nnext      esnet-export to-onnx {weights}"


def train(settings: RunSettings, *, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Train to the end of the recipe, from where the folder's last checkpoint left off.

    The folder holds ``config.json``, ``metrics.csv``, ``curve.png``, ``last.ckpt`` (every epoch),
    ``best.ckpt`` (best validation mIoU), and at the end both as ``.safetensors``.

    Args:
        settings: What to train on, how, and with what.
        callbacks: Lightning callbacks to call beside our own.

    Raises:
        DatasetError: The dataset is not as it should be.
        CheckpointError: ``init`` is not an ESNet's weights.
        TrainingError: The folder holds a run with other settings, the machine lacks what was asked for, or
            there are no weights to make fit for INT8.
    """
    recipe, run_dir = settings.recipe, settings.run_dir
    if recipe.batch_size % settings.devices:
        raise TrainingError(
            f"a batch of {recipe.batch_size} cannot be shared by {settings.devices} devices",
            hint="choose --batch-size as a multiple of --devices",
        )
    train_split = open_split(settings.dataset, settings.data_dir, settings.train_split)
    val_split = open_split(settings.dataset, settings.data_dir, settings.val_split)
    accelerator = _accelerator(settings)
    if accelerator == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    L.seed_everything(settings.seed, verbose=False)
    counts = label_counts(train_split, _CACHE_DIR)
    network, origin = _network(settings, train_split.label_set.num_classes)
    config = _config(settings, train_split, val_split, origin, counts.tolist())
    last = _claim(run_dir, config)
    task = SegmentationTask(
        network,
        recipe,
        val_split,
        class_weights(counts, recipe.class_weight_offset),
        _metadata(settings, config),
        seed=settings.seed,
    )
    best = ModelCheckpoint(
        dirpath=run_dir,
        filename="best",
        monitor="val_miou",
        mode="max",
        enable_version_counter=False,
    )
    trainer = _trainer(settings, accelerator, [best, *callbacks])
    rank, num_ranks = trainer.global_rank, settings.devices
    views = TrainDataset(train_split, recipe, seed=settings.seed)
    _print_plan(settings, train_split, val_split, trainer, resumed_from=last)
    training = training_loader(
        views, seed=settings.seed, rank=rank, num_ranks=num_ranks, workers=settings.workers
    )
    validation = validation_loader(
        EvalDataset(val_split, recipe.size_hw), rank=rank, num_ranks=num_ranks
    )
    try:
        trainer.fit(task, training, validation, ckpt_path=last, weights_only=True)
    except SystemExit:  # how Lightning ends after Ctrl-C, once all is put away
        print(
            f"stopped   after epoch {trainer.current_epoch}; the same command continues it",
            flush=True,
        )
        raise
    if trainer.is_global_zero:
        for name in ("best", "last"):
            _write_weights(run_dir / f"{name}.ckpt")
    score = best.best_model_score
    return RunResult(
        run_dir=run_dir,
        epochs=trainer.current_epoch,
        best_miou=None if score is None else float(score),
    )


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``: written before the first step and after every epoch, always whole."""

    def __init__(self, run_dir: Path) -> None:
        """Write to this folder."""
        super().__init__(
            dirpath=run_dir,
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.path = run_dir / "last.ckpt"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure that there is a checkpoint whenever the run is stopped."""
        super().on_train_start(trainer, pl_module)
        if not self.path.exists():
            trainer.save_checkpoint(self.path)


def _trainer(settings: RunSettings, accelerator: str, others: Sequence[Callback]) -> L.Trainer:
    recipe = settings.recipe
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    if recipe.quantization:
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings(
        "ignore", message=".*LeafSpec.*is deprecated.*"
    )  # Lightning 2.6 with torch 2.13
    callbacks: list[Callback] = [
        RunLog(settings.run_dir, prints_lines=not settings.show_progress),
        *others,
        LastCheckpoint(settings.run_dir),
    ]
    if recipe.ema_decay is not None:
        callbacks.insert(0, MovingAverage(recipe.ema_decay))
    if settings.show_progress:
        callbacks.append(RichProgressBar())
    return L.Trainer(
        accelerator=accelerator,
        devices=settings.devices,
        # One stage at a time uses one of the two heads.
        strategy="ddp_find_unused_parameters_true" if settings.devices > 1 else "auto",
        precision=_precision(settings.precision, accelerator),  # type: ignore[arg-type]  # a literal
        max_epochs=recipe.all_epochs,
        check_val_every_n_epoch=min(settings.validate_every, recipe.all_epochs),
        num_sanity_val_steps=0,
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=settings.show_progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _accelerator(settings: RunSettings) -> str:
    """Choose between CPU and GPU.

    Raises:
        TrainingError: More GPUs asked for than there are.
    """
    num_gpus = torch.cuda.device_count()
    chosen = settings.accelerator
    if chosen == "auto":
        chosen = "gpu" if num_gpus else "cpu"
    if chosen == "gpu" and settings.devices > num_gpus:
        raise TrainingError(
            f"{settings.devices} GPUs asked for, torch {torch.__version__} sees {num_gpus}",
            hint="esnet-doctor tells what is here; --accelerator cpu trains without a GPU",
        )
    return chosen


def _precision(asked: Precision, accelerator: str) -> str:
    """Choose Lightning's precision; ``auto`` takes what the hardware computes natively."""
    if asked != "auto":
        return _LIGHTNING_PRECISION[asked]
    if accelerator == "cpu":
        return _LIGHTNING_PRECISION["bf16" if _cpu_flags() & _BF16_CPU_FLAGS else "fp32"]
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return _LIGHTNING_PRECISION["bf16" if native else "fp16"]


def _cpu_flags() -> set[str]:
    """Read the CPU's feature names where Linux tells them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _network(settings: RunSettings, num_classes: int) -> tuple[ESNet, str]:
    """Make the network, with the weights to begin from, and say where they come from."""
    if settings.init is None:
        if settings.recipe.quantization:
            raise TrainingError(
                "quantization-aware training begins with trained weights, none are given",
                hint="name them: --init runs/camvid/best.ckpt, or --init camvid for those that are shipped",
            )
        return ESNet(NetworkConfig(num_classes=num_classes)), "scratch"
    checkpoint = load_checkpoint(settings.init)
    found = checkpoint.network.config.num_classes
    if found != num_classes:
        raise TrainingError(
            f"{checkpoint.path} scores {found} classes, {settings.dataset} has {num_classes}",
            hint="begin from weights of the same classes, or leave --init away",
        )
    if checkpoint.family is not AUTHORS:
        raise TrainingError(
            f"{checkpoint.path} has the {checkpoint.family.name} layout, training saves that of the authors",
            hint="begin from weights of esnet-train or of the authors, or leave --init away",
        )
    return checkpoint.network, f"{checkpoint.path.name} sha256 {checkpoint.sha256}"


def _config(
    settings: RunSettings,
    train_split: LabelledSplit,
    val_split: LabelledSplit,
    origin: str,
    counts: list[int],
) -> dict[str, Any]:
    """Gather what decides the run's outcome, and what it was made with."""
    return {
        "recipe": settings.recipe.as_dict(),
        "dataset": settings.dataset,
        "train": {"split": train_split.split, "pictures": len(train_split), "label_counts": counts},
        "val": {"split": val_split.split, "pictures": len(val_split)},
        "init": origin,
        "seed": settings.seed,
        "made_with": {
            "revision": _git_revision(),
            "torch": torch.__version__,
            "lightning": L.__version__,
            "python": platform.python_version(),
            "data_dir": str(settings.data_dir),
            "devices": settings.devices,
            "precision": settings.precision,
        },
    }


def _claim(run_dir: Path, config: dict[str, Any]) -> Path | None:
    """Make the run's folder, or check that it holds this very run; get the checkpoint to continue from.

    Raises:
        TrainingError: It holds a run with other settings, or something else.
    """
    path = run_dir / "config.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        changed = _differences(stored, json.loads(json.dumps(config)))
        if changed:
            raise TrainingError(
                f"{run_dir} holds a run with other settings: {'; '.join(changed)}",
                hint="continue it with the settings in its config.json, or name another folder: -o",
            )
        last = run_dir / "last.ckpt"
        return last if last.is_file() else None
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise TrainingError(
            f"{run_dir} is a folder with other things in it", hint="name a new folder: -o RUN"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(".config.json")
    temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return None


def _differences(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """Name what was changed, leaving out what the run was made with: that may change between starts."""
    changed = []
    for key in sorted({*stored, *asked} - {"made_with"}):
        before, now = stored.get(key), asked.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            changed += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            changed.append(f"{prefix}{key} was {before}, now {now}")
    return changed


def _metadata(settings: RunSettings, config: dict[str, Any]) -> dict[str, str]:
    """Say in a checkpoint what it was trained on; values are text, as safetensors has it."""
    size_hw, quantization = settings.recipe.size_hw, settings.recipe.quantization
    return {
        "architecture": "esnet",
        "label_set": settings.dataset,
        "trained_on": f"{settings.dataset} {settings.train_split}, {config['train']['pictures']} pictures",
        "measured_on": f"{settings.dataset} {settings.val_split}, {config['val']['pictures']} pictures",
        "size": f"{size_hw[0]}x{size_hw[1]}" if size_hw else "",
        "recipe": settings.recipe.name,
        "epochs": str(settings.recipe.all_epochs),
        "init": config["init"],
        "revision": config["made_with"]["revision"],
        "input": "RGB/255",
        **(
            {"quantization_aware": f"int8, scheme {quantization}; val_miou is with its rounding"}
            if quantization
            else {}
        ),
    }


def _write_weights(checkpoint_path: Path) -> None:
    """Write a checkpoint's averaged weights as safetensors beside it: what to keep and to share."""
    if not checkpoint_path.is_file():
        return
    checkpoint = load_checkpoint(checkpoint_path)
    path = checkpoint_path.with_suffix(".safetensors")
    temporary = path.with_name(f".{path.name}")
    tensors = {key: value.contiguous() for key, value in checkpoint.network.state_dict().items()}
    save_file(tensors, temporary, metadata=dict(checkpoint.metadata))
    temporary.replace(path)


def _git_revision() -> str:
    """Get the commit of this code, ``-dirty`` where files were changed; ``unknown`` outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _print_plan(
    settings: RunSettings,
    train_split: LabelledSplit,
    val_split: LabelledSplit,
    trainer: L.Trainer,
    *,
    resumed_from: Path | None,
) -> None:
    if not trainer.is_global_zero:
        return
    for note in (*train_split.notes, *val_split.notes):
        print(f"note      {note}")
    recipe = settings.recipe
    counts = ", ".join(f"{len(split)} {split.split}" for split in (train_split, val_split))
    print(f"data      {settings.dataset}: {counts}")
    aware = f", rounding as INT8 for {recipe.quantization}" if recipe.quantization else ""
    print(f"recipe    {recipe.name}, {recipe.all_epochs} epochs, batch {recipe.batch_size}{aware}")
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
    print(f"machine   {trainer.num_devices} x {kind}, {trainer.precision}")
    print(f"run       {settings.run_dir}{', continued' if resumed_from else ''}", flush=True)
