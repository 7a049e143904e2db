"""Command line of ``esnet-data``: the commands check and split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from runtime.console import command, is_terminal, new_app, run_app
from runtime.files import atomic_path, require_outputs

app = new_app("Check a dataset before training, and divide it into splits.", is_group=True)

Data = Annotated[Path, typer.Argument(help="Folder of the dataset.")]


@command(
    app,
    examples=(
        "esnet-data check orchard/",
        "esnet-data check orchard/ --label-set classes.yaml --contact-sheet sheet.png",
    ),
    groups={"Dataset": "dataset label_set split", "Report": "contact_sheet"},
)
def check(
    data: Data,
    dataset: Annotated[
        Literal["camvid", "cityscapes", "folder"],
        typer.Option(help="Dataset in the folder; folder: your own images and masks."),
    ] = "folder",
    label_set: Annotated[
        str | None,
        typer.Option(help="Classes: a name, or a YAML or JSON file; default: the values found."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split or list file, repeatable; default: all.")
    ] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Draw images and coloured masks here (.png, .jpg).")
    ] = None,
) -> None:
    """Read every image and mask of DATA; report sizes, class shares, unknown values and missing pairs."""
    import cv2
    from rich.console import Console
    from rich.progress import track

    from esnet.data.check import check_dataset
    from esnet.data.check import contact_sheet as draw_sheet
    from esnet.labels import load_label_set

    require_outputs(contact_sheet, suffixes=(".png", ".jpg"))
    checked = check_dataset(
        dataset,
        data,
        split or (),
        load_label_set(label_set) if label_set else None,
        track=lambda files: track(
            files,
            "reading",
            console=Console(stderr=True),
            disable=not is_terminal(),
            transient=True,
        ),
    )
    typer.echo(checked.as_text())
    if contact_sheet is not None:
        with atomic_path(contact_sheet) as temporary:
            sheet = cv2.cvtColor(draw_sheet(checked), cv2.COLOR_RGB2BGR)
            temporary.write_bytes(cv2.imencode(contact_sheet.suffix, sheet)[1].tobytes())
        typer.echo(f"wrote     {contact_sheet}")
    raise typer.Exit(1 if checked.problems else 0)


@command(
    app,
    "split",
    examples=("esnet-data split orchard/", "esnet-data split orchard/ --val 0.1 --test 0.1"),
    groups={"Splits": "val test seed output"},
)
def split_data(
    data: Data,
    val: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the images to validate on.")
    ] = 0.2,
    test: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the images to test on.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the lists; default: DATA.")
    ] = None,
) -> None:
    """Divide DATA/images and DATA/masks at random: write the lists train.txt, val.txt and test.txt."""
    from esnet.data.datasets import write_split_lists

    counts = write_split_lists(data, {"val": val, "test": test}, seed=seed, output=output or data)
    for path, count in counts.items():
        typer.echo(f"wrote     {path}  {count} images")


def main() -> NoReturn:
    """Run ``esnet-data``."""
    run_app(app)
