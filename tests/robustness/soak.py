"""Run models for long and watch memory, threads and descriptors. ``make soak MINUTES=30``.

Each round opens an artefact, segments frames of several sizes one by one, as a batch and as a stream,
stops a stream half-way, and closes the artefact.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from export.plan import ExportPlan
from export.to_onnx import export_onnx
from runtime.backend import installed_backends
from runtime.segmenter import Segmenter

_SIZES = ((64, 128), (48, 64), (100, 37), (1, 1))
_MAX_GROWTH_MB = 30
_NUM_SAMPLES = 40


def soak(minutes: float) -> dict[str, Any]:
    """Run, and get the samples as plain data; the first quarter is the warm-up."""
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES * 6]
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        path = Path(folder) / "model.onnx"
        export_onnx("camvid", path, ExportPlan(size_hw=(64, 128)), verify=False)
        started, rounds, samples = time.monotonic(), 0, [_sample()]
        while (elapsed := time.monotonic() - started) < 60 * minutes:
            for backend in installed_backends():
                _round(path, backend, frames)
            rounds += 1
            if elapsed > 60 * minutes * len(samples) / _NUM_SAMPLES:
                samples.append(_sample())
        samples.append(_sample())
    steady = samples[len(samples) // 4 :]
    growth = {key: steady[-1][key] - steady[0][key] for key in steady[0]}
    return {
        "minutes": minutes,
        "rounds": rounds,
        "frames": rounds * len(installed_backends()) * 3 * len(frames),
        "growth_after_warm_up": growth,
        "samples": samples,
        "is_flat": growth["rss_mb"] < _MAX_GROWTH_MB
        and growth["threads"] <= 0
        and growth["descriptors"] <= 0,
    }


def _round(path: Path, backend: str, frames: list[np.ndarray]) -> None:
    with Segmenter.open(path, backend=backend) as segmenter:
        for frame in frames:
            segmenter.overlay(frame, segmenter.segment(frame))
        segmenter.segment(frames)
        assert sum(1 for _ in segmenter.stream(frames)) == len(frames)
        stopped = segmenter.stream(frames)
        assert len(list(islice(stopped, 5))) == 5
        stopped.close()


def _sample() -> dict[str, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mb": pages * resource.getpagesize() >> 20,
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def main() -> None:
    """Parse the options, run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path, help="Write the results here.")
    options = parser.parse_args()
    results = soak(options.minutes)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print({key: value for key, value in results.items() if key != "samples"})
    if not results["is_flat"]:
        sys.exit(f"memory, threads or descriptors grow: {results['growth_after_warm_up']}")


if __name__ == "__main__":
    main()
