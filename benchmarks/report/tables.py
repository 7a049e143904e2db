"""Tables as text, before it is known where they are shown: screen, CSV, Markdown, or a page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runtime.files import atomic_path

HINT = "what would shrink it"
"""Column that may be long; it wraps where others do not."""
TEXT_COLUMNS = ("scope", HINT)
"""Columns that stand to the left, beside the first of every table."""
_MIN_WIDTH = 120


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table as text."""

    title: str
    """Above it."""
    columns: tuple[str, ...]
    """The first is text, the others are figures but for ``TEXT_COLUMNS``."""
    rows: Sequence[Sequence[str]]
    """One cell a column."""


def wide_console(console: Console | None = None) -> Console:
    """Get a console that a table fits into."""
    console = console or Console(highlight=False)
    if console.width < _MIN_WIDTH:
        console = Console(highlight=False, width=_MIN_WIDTH, file=console.file)
    return console


def rich_table(grid: TextTable) -> Table:
    """Turn a grid into a table for the screen; text is to the left, figures to the right."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=escape(grid.title),
        title_justify="left",
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for index, column in enumerate(grid.columns):
        is_text = index == 0 or column in TEXT_COLUMNS
        table.add_column(
            escape(column),
            justify="left" if is_text else "right",
            no_wrap=index > 0 and column != HINT,
            overflow="fold",
        )
    for row in grid.rows:
        table.add_row(*map(escape, row))
    return table


def write_csv(grid: TextTable, path: Path) -> None:
    """Write a grid as CSV; empty names are filled from above, so that each row stands alone."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(grid.columns)
        name = ""
        for row in grid.rows:
            name = row[0] or name
            writer.writerow([name, *row[1:]])


def markdown_from_table(grid: TextTable) -> str:
    """Write a grid as a Markdown table."""
    lines = [
        "| " + " | ".join(grid.columns) + " |",
        "|---|" + "---:|" * (len(grid.columns) - 1),
    ]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid.rows
    ]
    return "\n".join(lines)
