"""The stub itself keeps the driver's rules, and says what it lacks."""

from __future__ import annotations

import os
import subprocess

from tests.gpu_rules.rules import in_environments


@in_environments("cuda-bindings", once=True)
def test_the_stub_keeps_the_drivers_rules(gpu, tmp_path):
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(gpu.stub),
        "PYTHONPATH": str(gpu.root),
        "CUDA_STUB_LOG": str(tmp_path / "log"),
    }
    rules = gpu.root / "tests" / "cuda_stub" / "driver_rules.py"
    options = ["-q", "--noconftest", "-p", "no:cacheprovider"]
    command = [gpu.python, "-m", "pytest", *options, str(rules)]
    result = subprocess.run(command, env=environment, cwd=gpu.root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
