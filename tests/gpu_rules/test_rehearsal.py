"""``scripts/gpu_check.sh`` with the real ONNX Runtime CUDA over the stub, which computes no labels."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.gpu_rules.rules import in_environments, wheels_layout


@in_environments("onnxruntime-gpu", once=True)
def test_the_gpu_check_runs_over_the_stub(gpu, tmp_path):
    """It needs torch and OpenCV, which only the environment of pytest has."""
    for name in ("torch", "cv2"):
        pytest.importorskip(name)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ESNET_")},
        "LD_LIBRARY_PATH": str(gpu.stub),
        "PYTHONPATH": str(wheels_layout(gpu, tmp_path)),
        "PYTHON": sys.executable,
    }
    out = tmp_path / "out"
    options = ["--out", str(out), "--quick", "--size", "64x128", "-k", "not tensorrt"]
    command = ["sh", "scripts/gpu_check.sh", *options]
    done = subprocess.run(command, env=environment, cwd=gpu.root, capture_output=True, text=True)
    results = json.loads((out / "gpu_check.json").read_text())["results"]
    outcomes: dict[str, set[str]] = {}
    for name, result in results.items():
        is_wrong = result["status"] == "failed" and "of the labels equal" not in result["reason"]
        assert not is_wrong, f"{name}: {result['reason']}"
        outcomes.setdefault(result["status"], set()).add(name.partition("-test_")[2])
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes["failed"] == {
        f"onnxruntime_{what}-{precision}"
        for what in ("labels", "throughput", "variants")
        for precision in ("fp32", "fp16")
    }
    assert {
        "bytes_survive_the_copy_to_the_gpu_and_back-cuda-bindings",
        "copies_from_pinned_and_pageable_memory-cuda-bindings",
        "every_frame_comes_back-cuda-bindings-graphs-batch8",
        "onnxruntime_bench_of_batches-fp16",
    } <= outcomes["passed"]
    figures = results["test_gpu_onnxruntime-test_onnxruntime_variants-fp16"]["figures"]
    names = ("default", "without CUDA graphs", "prefer_nhwc", "cuda-bindings")
    assert {f"batch_{size}, {name}" for size in (1, 8) for name in names} <= set(figures)
