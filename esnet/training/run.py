"""A training run that can be stopped at any time and resumed with the same settings."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

from esnet.checkpoint import load_checkpoint
from esnet.data.datasets import open_split
from esnet.data.labelled import LabelledSplit
from esnet.errors import DatasetError, TrainingError
from esnet.families import AUTHORS
from esnet.model import ESNet, NetworkConfig
from esnet.training.data import EvalDataset, TrainDataset, train_loader
from esnet.training.hardware import choose_accelerator, keep_freed_memory, lightning_precision
from esnet.training.losses import class_weights, label_counts
from esnet.training.run_folder import (
    checkpoint_metadata,
    open_run_folder,
    run_config,
    write_weights,
)
from esnet.training.run_log import RunLog
from esnet.training.settings import RunResult, RunSettings
from esnet.training.task import MovingAverage, SegmentationTask
from runtime.files import cache_dir

_CHECK_DATA = "esnet-data check lists all files that cannot be used"
_HEADS = ("encoder_output_conv.", "decoder.output_conv.")
_IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6 with torch 2.13
)


def train(settings: RunSettings, *, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Train to the end of the recipe, from the last checkpoint in the run's folder if there is one.

    The folder contains ``config.json``, ``metrics.csv``, ``curve.png``, ``last.ckpt`` (every epoch) and
    ``best.ckpt`` (best validation mIoU); at the end also both as ``.safetensors``.

    Args:
        settings: Data, recipe, initial weights and hardware.
        callbacks: Further Lightning callbacks.

    Raises:
        DatasetError: The dataset is missing or incomplete.
        CheckpointError: ``init`` is not an ESNet checkpoint.
        TrainingError: The folder holds a run with other settings, the hardware is not available, or a
            quantization-aware recipe has no initial weights.
    """
    recipe, run_dir = settings.recipe, settings.run_dir
    if recipe.batch_size % settings.devices:
        raise TrainingError(
            f"a batch of {recipe.batch_size} cannot be split over {settings.devices} devices",
            hint="choose --batch-size as a multiple of --devices",
        )
    splits = train_split, val_split = tuple(
        open_split(settings.dataset, settings.data_dir, split, label_set=settings.label_set)
        for split in (settings.train_split, settings.val_split)
    )
    accelerator = choose_accelerator(settings.accelerator, settings.devices)
    if accelerator == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    L.seed_everything(settings.seed, verbose=False)
    counts, _ = (label_counts(split, cache_dir()) for split in splits)  # reads every mask once
    network, origin = _initial_network(settings, train_split.label_set.num_classes)
    config = run_config(settings, splits, origin, counts.tolist())
    resume_path = open_run_folder(run_dir, config)
    task = SegmentationTask(
        network,
        recipe,
        class_weights(counts, recipe.class_weight_offset),
        checkpoint_metadata(settings, splits, config),
        ignore_index=val_split.label_set.ignore_index,
        seed=settings.seed,
    )
    best = ModelCheckpoint(
        run_dir, "best", monitor="val_miou", mode="max", enable_version_counter=False
    )
    trainer = _trainer(settings, accelerator, [best, *callbacks])
    rank, num_ranks = trainer.global_rank, settings.devices
    dataset = TrainDataset(train_split, recipe, seed=settings.seed)
    if trainer.is_global_zero:
        absent = [
            n for n, k in zip(train_split.label_set.class_names, counts, strict=True) if not k
        ]
        _print_plan(settings, splits, trainer, origin, absent, is_resumed=resume_path is not None)
    training = train_loader(
        dataset, seed=settings.seed, rank=rank, num_ranks=num_ranks, workers=settings.workers
    )
    validation = DataLoader(
        EvalDataset(val_split, recipe.size_hw), sampler=range(rank, len(val_split), num_ranks)
    )
    try:
        trainer.fit(task, training, validation, ckpt_path=resume_path, weights_only=True)
    except DatasetError as error:  # from a worker, the message includes a traceback
        message = str(error).rpartition("DatasetError: ")[2].strip()
        raise DatasetError(message, hint=error.hint or _CHECK_DATA) from error
    except SystemExit:  # Ctrl-C or SIGTERM, see runtime.console
        print(
            f"stopped   after epoch {trainer.current_epoch}; re-run the command to resume",
            flush=True,
        )
        raise
    if trainer.is_global_zero:
        for name in ("best", "last"):
            write_weights(run_dir / f"{name}.ckpt")
    score = best.best_model_score
    return RunResult(
        run_dir=run_dir,
        epochs=trainer.current_epoch,
        best_miou=None if score is None else float(score),
    )


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every epoch, and before the first step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the first checkpoint, so that a run can be resumed whenever it stops."""
        super().on_train_start(trainer, pl_module)
        path = Path(str(self.dirpath), "last.ckpt")
        if not path.exists():
            trainer.save_checkpoint(path)


def _initial_network(settings: RunSettings, num_classes: int) -> tuple[ESNet, str]:
    """Make the network with its initial weights, and describe their origin.

    Raises:
        CheckpointError: ``init`` is not an ESNet checkpoint.
        TrainingError: The weights have another layout, or trained weights are needed but not given.
    """
    if settings.init is None:
        if settings.recipe.quantization:
            raise TrainingError(
                "quantization-aware training needs trained weights, none are given",
                hint="add --init runs/camvid/best.ckpt, or --init camvid for the shipped weights",
            )
        return ESNet(NetworkConfig(num_classes)), "scratch"
    checkpoint = load_checkpoint(settings.init)
    if checkpoint.family is not AUTHORS:
        raise TrainingError(
            f"{checkpoint.path} has the {checkpoint.family.name} layout, training needs the authors' layout",
            hint="start from weights of esnet-train or of the authors, or omit --init",
        )
    origin = f"{checkpoint.path.name} sha256 {checkpoint.sha256}"
    found = checkpoint.network.config.num_classes
    if found == num_classes:
        return checkpoint.network, origin
    if settings.recipe.quantization:
        raise TrainingError(
            f"{checkpoint.path} has {found} classes, the dataset has {num_classes}: quantization-aware "
            "training needs weights of the same classes",
            hint="train in float first, then start --qat from its best.ckpt",
        )
    network = ESNet(NetworkConfig(num_classes))
    trained = checkpoint.network.state_dict()
    body = {key: value for key, value in trained.items() if not key.startswith(_HEADS)}
    network.load_state_dict(network.state_dict() | body)
    return network, f"{origin}, new head: {num_classes} classes instead of {found}"


def _trainer(
    settings: RunSettings, accelerator: str, extra_callbacks: Sequence[Callback]
) -> L.Trainer:
    recipe, run_dir = settings.recipe, settings.run_dir
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if recipe.quantization:
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    callbacks: list[Callback] = [
        RunLog(run_dir, prints_lines=not settings.show_progress),
        *extra_callbacks,
        LastCheckpoint(run_dir, "last", save_on_train_epoch_end=True, enable_version_counter=False),
    ]
    if recipe.ema_decay is not None:
        callbacks.insert(0, MovingAverage(recipe.ema_decay))
    if settings.show_progress:
        callbacks.append(RichProgressBar())
    return L.Trainer(
        accelerator=accelerator,
        devices=settings.devices,
        # Each of the two stages uses only one of the two heads.
        strategy="ddp_find_unused_parameters_true" if settings.devices > 1 else "auto",
        precision=lightning_precision(settings.precision, accelerator),  # type: ignore[arg-type]
        max_epochs=recipe.total_epochs,
        check_val_every_n_epoch=min(settings.validate_every, recipe.total_epochs),
        num_sanity_val_steps=0,
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=settings.show_progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _print_plan(
    settings: RunSettings,
    splits: Sequence[LabelledSplit],
    trainer: L.Trainer,
    origin: str,
    absent: Sequence[str],
    *,
    is_resumed: bool,
) -> None:
    recipe = settings.recipe
    for note in (note for split in splits for note in split.notes):
        print(f"note      {note}")
    if absent:
        name = splits[0].split
        print(
            f"note      {name} has no pixel of: {', '.join(absent)}; esnet-data check shows the values"
        )
    counts = ", ".join(f"{len(split)} {split.split}" for split in splits)
    label_set = splits[0].label_set
    print(
        f"data      {splits[0].dataset}: {counts}; {label_set.num_classes} classes of {label_set.name}"
    )
    short = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", origin)  # the hash
    print(f"init      {short}")
    qat = f", fake quantization for {recipe.quantization}" if recipe.quantization else ""
    print(f"recipe    {recipe.name}, {recipe.total_epochs} epochs, batch {recipe.batch_size}{qat}")
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
    print(f"machine   {trainer.num_devices} x {kind}, {trainer.precision}")
    print(f"run       {settings.run_dir}{', resumed' if is_resumed else ''}", flush=True)
