"""Time from the start of a process to its first labels, with an empty and with a filled cache, in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.environment import describe_environment
from benchmarks.report.tables import write_json
from runtime.console import run_app

_CHILD = """
import sys, time
started = time.perf_counter()
import numpy as np
from runtime.segmenter import Segmenter
with Segmenter.open(sys.argv[1], backend="openvino", precision=sys.argv[2] or None) as segmenter:
    segmenter.segment(np.zeros((*segmenter.card.size_hw, 3), np.uint8))
print(time.perf_counter() - started, time.process_time())
"""


def main(
    models: Annotated[list[Path], typer.Argument(help="Exported models.")],
    precision: Annotated[str, typer.Option(help="Precision; default: the model's.")] = "",
    turns: Annotated[int, typer.Option(help="Processes of each kind.")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Print and write the least wall and CPU time, seconds."""
    environment, results = describe_environment(), []
    with tempfile.TemporaryDirectory(prefix="esnet-opening-") as folder:
        for path in models:
            times: dict[str, list[tuple[float, ...]]] = {"empty": [], "filled": []}
            for turn in range(turns):
                for cache, rows in times.items():
                    name = f"empty-{turn}" if cache == "empty" else "filled"
                    rows.append(_run(path, precision, Path(folder, name)))
            rows_filled = times["filled"][1:]  # the first one filled it
            result = {"model": path.name, "precision": precision}
            for cache, rows in (("empty", times["empty"]), ("filled", rows_filled)):
                wall, cpu = map(min, zip(*rows, strict=True))
                result |= {f"{cache}_wall_s": wall, f"{cache}_cpu_s": cpu}
            results.append(result)
            print(result)
    if json_file is not None:
        content = {"schema": 1, "turns": turns, "results": results, "environment": environment}
        write_json(json_file, content)


def _run(path: Path, precision: str, cache: Path) -> tuple[float, ...]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), precision],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(map(float, done.stdout.split()))


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
