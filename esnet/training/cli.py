"""Command line of ``esnet-train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from esnet.training.settings import Accelerator, Precision, RunSettings
from runtime.console import command, is_terminal, new_app, parse_size, run_app

app = new_app("Train ESNet.")


@command(
    app,
    examples=(
        "esnet-train --data camvid/ --dataset camvid -o runs/camvid",
        "esnet-train --data orchard/ --dataset folder --label-set classes.yaml --init camvid -o runs/orchard",
    ),
    groups={
        "Dataset": "data dataset label_set train_split val_split",
        "Run": "output init qat validate_every seed",
        "Hyperparameters": "recipe epochs encoder_epochs batch_size learning_rate crop",
        "Hardware": "accelerator devices precision workers",
    },
    epilog="Exit codes: 0 ok, 2 bad input, 3 not installed, 130 and 143 stopped by Ctrl-C and SIGTERM.",
)
def train(
    data: Annotated[Path, typer.Option("--data", help="Folder of the dataset.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; resumed if it exists.")
    ],
    dataset: Annotated[
        Literal["camvid", "cityscapes", "folder"],
        typer.Option(help="Dataset in the folder; folder: your own images and masks."),
    ] = "camvid",
    label_set: Annotated[
        str | None,
        typer.Option(help="Classes: a name, or a YAML or JSON file; default: the dataset's."),
    ] = None,
    recipe: Annotated[
        Literal["camvid", "cityscapes", "paper"] | None,
        typer.Option(help="Hyperparameters; default: the dataset's; for folder: camvid."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Initial weights, such as camvid, of any classes; default: random."),
    ] = None,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat",
            help="Fine-tune --init for INT8: 3 epochs with fake quantization, low learning rate.",
        ),
    ] = False,
    train_split: Annotated[str, typer.Option(help="Split to train on, or a list file.")] = "train",
    val_split: Annotated[str, typer.Option(help="Split to validate on, or a list file.")] = "val",
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    encoder_epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs that train only the encoder, before --epochs.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step, all devices; default: the recipe's.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; default: the recipe's.")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH, multiples of 8; default: the recipe's.")
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs between validations; default: 5, with --qat 1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    accelerator: Annotated[Accelerator, typer.Option(help="auto: a GPU if there is one.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Number of GPUs, or of CPU processes.")] = 1,
    precision: Annotated[
        Precision,
        typer.Option(help="auto: bf16 if supported natively, else fp16 on GPUs, fp32 on CPUs."),
    ] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes per device that load and augment images.")
    ] = 1,
) -> None:
    """Train ESNet. Re-run the same command to resume an interrupted run, even after kill -9."""
    from esnet.labels import load_label_set
    from esnet.training.recipe import quantization_aware, recipe_named
    from esnet.training.run import train as run_training

    chosen = recipe_named(recipe or ("camvid" if dataset == "folder" else dataset))
    if qat:
        chosen = quantization_aware(chosen)
    changes: dict[str, Any] = {
        "epochs": epochs,
        "encoder_epochs": encoder_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "augmentation": replace(chosen.augmentation, crop_hw=parse_size(crop, "--crop"))
        if crop
        else None,
    }
    settings = RunSettings(
        dataset=dataset,
        data_dir=data,
        run_dir=output,
        label_set=load_label_set(label_set) if label_set else None,
        recipe=replace(chosen, **{k: v for k, v in changes.items() if v is not None}),
        train_split=train_split,
        val_split=val_split,
        validate_every=validate_every or (1 if qat else 5),
        init=init,
        seed=seed,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        workers=workers,
        show_progress=is_terminal(),
    )
    typer.echo(run_training(settings).as_text())


def main() -> NoReturn:
    """Run ``esnet-train``."""
    run_app(app)


if __name__ == "__main__":
    main()
