"""Text tables and their outputs: screen, CSV, Markdown; writing of report files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from runtime.console import is_terminal
from runtime.files import atomic_path

HINT = "how to reduce it"
"""Title of the column with long text; the only one that wraps."""
TEXT_COLUMNS = ("scope", HINT)
"""Titles of left-aligned columns, besides the first column of every table."""
_MIN_WIDTH = 128


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of strings."""

    title: str
    """Title, shown above the table."""
    columns: tuple[str, ...]
    """Column titles. The first column and ``TEXT_COLUMNS`` hold text, the others numbers."""
    rows: Sequence[Sequence[str]]
    """Rows, one cell for each column."""


@dataclass(frozen=True, slots=True)
class Document:
    """A report as text, for the screen and for Markdown."""

    facts: Mapping[str, str]
    """Conditions of the measurement by name."""
    tables: Sequence[TextTable]
    """Tables."""
    notes: Sequence[str]
    """Lines below the tables."""


def print_document(document: Document) -> None:
    """Print facts, tables and notes; the console is at least 128 columns wide, so that tables fit."""
    console = Console(highlight=False)
    console.width = max(console.width, _MIN_WIDTH)
    width = max(map(len, document.facts), default=0)
    for key, value in document.facts.items():
        console.print(f"{key:>{width}}  {value}", markup=False, soft_wrap=True)
    console.print()
    for table in document.tables:
        console.print(_rich_table(table))
    for note in document.notes:
        console.print(note, markup=False, soft_wrap=True)


def markdown_from_document(document: Document) -> str:
    """Format tables, notes and facts as Markdown."""
    parts = []
    for table in document.tables:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
        first, *others = ["| " + " | ".join(row) + " |" for row in rows]
        rule = "|---|" + "---:|" * (len(table.columns) - 1)
        parts.append("\n".join([f"**{table.title}**\n", first, rule, *others]))
    facts = [f"{key}: {value}" for key, value in document.facts.items()]
    parts += ["\n".join(f"- {line}" for line in lines) for lines in (document.notes, facts)]
    return "\n\n".join(parts) + "\n"


def progress_bar() -> Progress:
    """Return a progress display for a terminal; it disappears at the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=not is_terminal())


def _rich_table(table: TextTable) -> Table:
    """Convert a table for the screen: text left-aligned, numbers right-aligned."""
    grid = Table(
        box=box.SIMPLE_HEAD,
        title=escape(table.title),
        title_justify="left",
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for index, column in enumerate(table.columns):
        is_text = index == 0 or column in TEXT_COLUMNS
        grid.add_column(
            escape(column),
            justify="left" if is_text else "right",
            no_wrap=index > 0 and column != HINT,
            overflow="fold",
        )
    for row in table.rows:
        grid.add_row(*map(escape, row))
    return grid


def publish(
    document: Document,
    content: Mapping[str, Any],
    json_path: Path | None,
    markdown_path: Path | None = None,
    *others: tuple[Path | None, Callable[[Path], object]],
) -> None:
    """Print a report and write its files; ``others`` are paths and the functions that write them."""
    print_document(document)
    if json_path is not None:
        write_json(json_path, content)
    if markdown_path is not None:
        write_text(markdown_path, markdown_from_document(document))
    for path, write in others:
        if path is not None:
            write(path)
    for path in filter(None, (json_path, markdown_path, *(path for path, _ in others))):
        print(f"wrote {path}")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, indented by 2."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, table: TextTable) -> None:
    """Write a CSV file atomically; an empty name is replaced by the name of the row above."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(table.columns)
        name = ""
        for row in table.rows:
            name = row[0] or name
            writer.writerow([name, *row[1:]])
