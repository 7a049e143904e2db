"""Time every candidate of ``auto`` on artefacts themselves, and compare the fastest with the choice.

It is the CPU time of one thread, which other processes hardly change. ``ONEDNN_MAX_CPU_ISA`` limits the
instructions.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.environment import describe_environment
from benchmarks.report.tables import write_json
from esnet.data.scenes import street_scene
from runtime.artefact.card import ModelCard
from runtime.backend import choose_backend, open_backend
from runtime.console import run_app
from runtime.machine.onednn import MAX_ISA
from runtime.media.frames import batch_from_frames


def main(
    models: Annotated[list[Path], typer.Argument(help="Exported models.")],
    turns: Annotated[int, typer.Option(help="Each candidate labels one frame a turn.")] = 15,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Print and write the choice for each artefact, with the times of all candidates."""
    environment, results = describe_environment(), []
    for path in models:
        results.append(_measure(path, turns))
        print(results[-1])
    if json_file is not None:
        limit = os.environ.get(MAX_ISA, "none")
        content = {"schema": 1, MAX_ISA: limit, "threads": 1, "turns": turns, "results": results}
        write_json(json_file, {**content, "environment": environment})


def _measure(path: Path, turns: int) -> dict[str, Any]:
    started = time.process_time()
    choice = choose_backend(path)
    seconds = time.process_time() - started
    card = ModelCard.from_file(path)
    chosen = f"{choice.backend} {choice.precision}"
    batch = batch_from_frames([street_scene(card.size_hw).image], card)
    times_ms: dict[str, float] = {}
    with ExitStack() as stack:
        opened = {
            str(candidate): stack.enter_context(
                open_backend(path, candidate.backend, precision=candidate.precision, threads=1)
            )
            for candidate in choice.times_ms
        }
        for turn in range(turns + 1):  # the first one warms up
            for name, backend in opened.items():
                started = time.process_time()
                backend.infer(batch)
                elapsed_ms = 1e3 * (time.process_time() - started)
                if turn:
                    times_ms[name] = min(elapsed_ms, times_ms.get(name, elapsed_ms))
    return {
        "model": path.name,
        "chosen": chosen,
        "cpu_ms_of_the_artefact": times_ms,
        "chosen_to_fastest": times_ms[chosen] / min(times_ms.values()) if times_ms else 1.0,
        "cpu_ms_of_the_probe": {str(name): value for name, value in choice.times_ms.items()},
        "cpu_seconds_of_the_choice": seconds,
        "notes": choice.notes,
    }


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
