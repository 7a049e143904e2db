"""Print the doctor's findings as tables or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.machine.doctor import Diagnosis


def print_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """Print the findings to standard output."""
    if as_json:
        print(json.dumps(asdict(diagnosis) | {"can_run": diagnosis.can_run}, indent=2))
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    for key, value in diagnosis.machine.items():
        console.print(f"{key:>13}  {value}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in diagnosis.checks:
        cells = ("ok" if check.is_ok else "NO", check.name, check.detail, check.fix)
        table.add_row(*map(Text, cells))
    console.print()
    console.print(table)
    missing = [name for name, version in diagnosis.installed.items() if version is None]
    found = [f"{name} {version}" for name, version in diagnosis.installed.items() if version]
    console.print(f"\ninstalled: {', '.join(found)}")
    console.print(f"not installed: {', '.join(missing) or 'nothing'}")
    for gpu in diagnosis.gpus:
        console.print(f"gpu: {gpu.support}")
        for install in gpu.installs:
            console.print(f"     install TensorRT for it: {install}")
    for warning in diagnosis.warnings:
        console.print(f"warning: {warning}")
    if not diagnosis.can_run:
        console.print("no backend can run a model here: pip install 'esnet-deploy[cpu]'")
