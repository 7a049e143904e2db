"""The list of GPUs over the stub of the CUDA driver, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_stub.build import CannotBuild, build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ask(tmp_path_factory, pytestconfig):
    """Run code with these settings of the stub, and get its result, which must be JSON."""
    cache = getattr(pytestconfig, "cache", None)
    try:
        folder = build(cache.mkdir("cuda_stub") if cache else tmp_path_factory.mktemp("stub"))
    except CannotBuild as reason:
        pytest.skip(str(reason))

    def run(code="list_cuda_gpus()", **settings):
        text = f"import json; from runtime.machine.cuda_driver import *; print(json.dumps({code}))"
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CUDA_STUB")},
            **{f"CUDA_STUB_{name}": str(value) for name, value in settings.items()},
            "LD_LIBRARY_PATH": str(folder),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", text]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return json.loads(done.stdout)

    return run


def test_every_gpu_is_listed_in_the_drivers_order(ask):
    gpus, problem = ask(SM=61, DEVICES=2, MEM_MB=11264)
    assert [(gpu[1], gpu[2], gpu[3]) for gpu in gpus] == [
        ("6.1", 11264 << 20, "0000:01:00.0"),
        ("6.1", 11264 << 20, "0000:02:00.0"),
    ]
    assert all(gpu[0] for gpu in gpus)
    assert problem == ""


def test_no_context_and_no_memory_are_left(ask):
    code = "list_cuda_gpus() and __import__('tests.cuda_stub.stub', fromlist=['x']).left()"
    assert not any(ask(code).values())


@pytest.mark.parametrize(
    ("call", "code", "problem"),
    [
        ("cuInit", 100, "CUDA_ERROR_NO_DEVICE"),
        ("cuInit", 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("cuDeviceGetCount", 999, "CUDA_ERROR_UNKNOWN"),
        ("cuDeviceGetName", 999, "CUDA_ERROR_UNKNOWN"),
        ("cuDeviceGetPCIBusId", 999, "CUDA_ERROR_UNKNOWN"),
        ("cuDeviceTotalMem", 999, "CUDA_ERROR_UNKNOWN"),
        ("cuDeviceGetAttribute", 999, "CUDA_ERROR_UNKNOWN"),
    ],
)
def test_an_error_of_the_driver_is_named(ask, call, code, problem):
    assert ask(FAIL=f"{call}:1:{code}") == [[], problem]


def test_a_driver_without_a_device_lists_none(ask):
    assert ask(DEVICES=0) == [[], "CUDA_ERROR_NO_DEVICE"]
