"""Compare artefacts by the CPU time of one thread, which a busy machine hardly changes."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from benchmarks.environment import describe_environment
from benchmarks.frames import load_frames
from benchmarks.report.tables import write_json
from esnet.metrics import label_agreement
from runtime.artefact.card import ModelCard
from runtime.backend import open_backend
from runtime.console import run_app
from runtime.files import sha256_of
from runtime.media.frames import batch_from_frames

_WARMUP_TURNS = 3


def main(
    models: Annotated[list[Path], typer.Argument(help="Artefacts of one size, the first to beat.")],
    reference: Annotated[Path, typer.Option(help="fp32 artefact to compare the labels with.")],
    frames: Annotated[Path, typer.Option(help="Image, folder or video.")],
    backend: Annotated[Literal["openvino", "onnxruntime"], typer.Option()] = "openvino",
    turns: Annotated[int, typer.Option(help="Each artefact labels one frame a turn.")] = 100,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time the artefacts in turns, and print minimum, median and ratios to the first."""
    environment = describe_environment()
    loaded = load_frames(frames, ModelCard.from_file(reference).size_hw)
    results = []
    with ExitStack() as stack:
        first, *opened = [
            stack.enter_context(open_backend(path, backend, threads=1))
            for path in (reference, *models)
        ]
        batches = [batch_from_frames([frame], first.card) for frame in loaded.frames]
        expected = [first.infer(batch)[0] for batch in batches]
        times = np.empty((_WARMUP_TURNS + turns, len(models)))
        for turn, row in enumerate(times):
            for column, one in enumerate(opened):
                start = time.process_time()
                one.infer(batches[turn % len(batches)])
                row[column] = 1e3 * (time.process_time() - start)
        times = times[_WARMUP_TURNS:]
        for path, one, column in zip(models, opened, times.T, strict=True):
            agreement = label_agreement([one.infer(batch)[0] for batch in batches], expected)
            result = {
                "model": path.name,
                "sha256": sha256_of(path),
                "precision": one.precision,
                "cpu_ms_min": float(column.min()),
                "cpu_ms_p50": float(np.median(column)),
                "ratio_of_minima": float(column.min() / times[:, 0].min()),
                "median_of_ratios": float(np.median(column / times[:, 0])),
                "agreement_fp32": agreement,
            }
            results.append(result)
            print(
                *(
                    f"{value:.4g}" if isinstance(value, float) else value
                    for value in result.values()
                )
            )
    if json_file is not None:
        isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "all")
        about = {"backend": backend, "threads": 1, "turns": turns, "ONEDNN_MAX_CPU_ISA": isa}
        frames_text = loaded.description
        content = {"schema": 1, **about, "frames": frames_text, "results": results}
        write_json(json_file, {**content, "environment": environment})


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
