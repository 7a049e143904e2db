"""``esnet-train``."""

from __future__ import annotations

import enum
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from runtime.errors import EsnetError

_EXIT_CODES = (
    "Exit codes: 0 ok, 1 interrupted, 2 bad input, 3 not installed. --debug shows tracebacks."
)
_BAD_INPUT, _NOT_INSTALLED = 2, 3
_LIBRARIES = ("torch", "lightning", "torchmetrics", "safetensors", "matplotlib")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dataset(str, enum.Enum):
    """Whose tree the data folder has."""

    camvid = "camvid"
    cityscapes = "cityscapes"


class RecipeName(str, enum.Enum):
    """How to train."""

    camvid = "camvid"
    cityscapes = "cityscapes"
    paper = "paper"


class Accelerator(str, enum.Enum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class PrecisionName(str, enum.Enum):
    """Arithmetic of training."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@app.command(epilog=_EXIT_CODES)
def train(
    data: Annotated[Path, typer.Option("--data", help="The dataset's folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run's folder; continued if it exists.")
    ],
    dataset: Annotated[Dataset, typer.Option(help="Whose tree the folder has.")] = Dataset.camvid,
    recipe: Annotated[RecipeName | None, typer.Option(help="Default: the dataset's own.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to begin with; default: from scratch.")
    ] = None,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat", help="Fine-tune --init for INT8: 3 epochs with its rounding, at a low rate."
        ),
    ] = False,
    train_split: Annotated[str, typer.Option(help="Split to learn.")] = "train",
    val_split: Annotated[str, typer.Option(help="Split to measure.")] = "val",
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    encoder_epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs with the encoder alone, before the others.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Over all devices; default: the recipe's.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the recipe's.")] = None,
    crop: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH, multiples of 8; default: the recipe's.")
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs between validations; default: 5, 1 with --qat."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Source of all chance.")] = 0,
    accelerator: Annotated[Accelerator, typer.Option(help="Where to train.")] = Accelerator.auto,
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on the CPU.")] = 1,
    precision: Annotated[
        PrecisionName,
        typer.Option(help="auto: bf16 where it is native, fp16 on other GPUs, else fp32."),
    ] = PrecisionName.auto,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes a device that prepare pictures.")
    ] = 1,
) -> None:
    """Train ESNet. The same command continues a run that was stopped."""
    from esnet.training.recipe import quantization_aware, recipe_named
    from esnet.training.run import RunSettings
    from esnet.training.run import train as run_training

    chosen = recipe_named(recipe.value if recipe else dataset.value)
    if qat:
        chosen = quantization_aware(chosen)
    changes: dict[str, Any] = {
        "epochs": epochs,
        "encoder_epochs": encoder_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "augmentation": replace(chosen.augmentation, crop_hw=_size(crop)) if crop else None,
    }
    result = run_training(
        RunSettings(
            dataset=dataset.value,
            data_dir=data,
            run_dir=output,
            recipe=replace(
                chosen, **{name: value for name, value in changes.items() if value is not None}
            ),
            train_split=train_split,
            val_split=val_split,
            validate_every=validate_every or (1 if qat else 5),
            init=init,
            seed=seed,
            accelerator=accelerator.value,
            devices=devices,
            precision=precision.value,
            workers=workers,
            show_progress=sys.stderr.isatty(),
        )
    )
    typer.echo(result.as_text())


def main() -> NoReturn:
    """Entry point of ``esnet-train``."""
    is_debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except (EsnetError, OSError) as error:
        if is_debug:
            raise
        _fail(str(error), getattr(error, "hint", None), _BAD_INPUT)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if is_debug or library not in _LIBRARIES:
            raise
        _fail(
            f"this command needs {library}, which is not installed",
            "pip install 'esnet-deploy[train]'",
            _NOT_INSTALLED,
        )
    sys.exit(0)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise EsnetError(f"size {text!r} is not HEIGHTxWIDTH", hint="for example --crop 320x432")
    return int(height), int(width)


def _fail(message: str, hint: str | None, exit_code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
