"""What the machine is and what is installed, from the system itself."""

import json
import sys
import types
from importlib import metadata

import pytest

from runtime.doctor import diagnose
from runtime.doctor_report import print_diagnosis
from runtime.machine import cpu_flags, cpu_name, num_cores, nvidia_gpus


@pytest.fixture
def fake_smi(tmp_path, monkeypatch):
    """Put a program named ``nvidia-smi`` before all others."""

    def install(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


def check(name):
    return next(check for check in diagnose().checks if check.name.endswith(name))


def test_the_cpu_is_named_with_the_cores_this_process_may_use():
    assert cpu_name().endswith(f"({num_cores()} cores)")


def test_the_cpu_has_flags():
    assert cpu_flags()


def test_gpus_are_listed_as_the_driver_lists_them(fake_smi):
    fake_smi("echo 'NVIDIA GeForce GTX 1080 Ti, 535.1, 11264 MiB'; echo 'Tesla T4, 535.1, 1 MiB'")
    assert nvidia_gpus() == (
        "NVIDIA GeForce GTX 1080 Ti, 535.1, 11264 MiB",
        "Tesla T4, 535.1, 1 MiB",
    )


def test_no_gpu_when_the_driver_does_not_answer(fake_smi):
    fake_smi("echo NVIDIA-SMI has failed; exit 9")
    assert nvidia_gpus() == ()


def test_no_gpu_without_a_driver(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert nvidia_gpus() == ()


def test_what_works_is_reported_with_its_version():
    assert (check("onnxruntime").is_ok, check("onnxruntime").fix) == (True, "")
    assert check("onnxruntime").detail == metadata.version("onnxruntime")


def test_what_is_missing_gets_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert (check("openvino").is_ok, check("openvino").detail) == (False, "not installed")
    assert check("openvino").fix == "pip install 'esnet-deploy[cpu]'"


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        pytest.param(
            "raise ImportError('[libgomp.so.1] is missing\\nmore')",
            "broken: [libgomp.so.1] is missing",
            id="loader-error",
        ),
        pytest.param("raise RuntimeError", "broken: ", id="no-message"),
        pytest.param(
            "import no_such_module", "broken: No module named 'no_such_module'", id="own-dependency"
        ),
    ],
)
def test_what_is_installed_but_does_not_load_is_broken(monkeypatch, tmp_path, code, detail):
    (tmp_path / "safetensors.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "safetensors", raising=False)
    assert check("safetensors").detail == detail


def test_the_remains_of_two_onnxruntimes_are_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    assert check("onnxruntime").detail == "broken: an empty folder is left"
    assert check("onnxruntime").fix == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'esnet-deploy[cpu]'"
    )


def test_twins_that_overwrite_each_other_are_warned_of(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    assert [warning.partition(" are")[0] for warning in diagnose().warnings] == [
        "onnxruntime and onnxruntime-gpu",
        "opencv-python and opencv-python-headless",
    ]


def test_a_machine_with_a_gpu_is_checked_for_tensorrt(fake_smi):
    fake_smi("echo 'Tesla T4, 535.1, 1 MiB'")
    diagnosis = diagnose()
    assert diagnosis.machine["gpu"] == "Tesla T4, 535.1, 1 MiB"
    assert "build engines: tensorrt" in [check.name for check in diagnosis.checks]


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param(("openvino", "onnxruntime"), id="no-backend"),
        pytest.param(("cv2",), id="no-opencv"),
    ],
)
def test_nothing_can_run_without(monkeypatch, hidden):
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    assert not diagnose().can_run


def test_one_backend_is_enough(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert diagnose().can_run


def test_the_text_shows_fixes_and_reasons_as_they_are(monkeypatch, tmp_path, capsys):
    (tmp_path / "safetensors.py").write_text("raise ImportError('[/lib] x')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "safetensors", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    print_diagnosis(diagnose(), as_json=False)
    row = next(line for line in capsys.readouterr().out.splitlines() if "[/lib] x" in line)
    assert row.startswith("NO")
    assert row.rstrip().endswith("pip install 'esnet-deploy[export]'")


def test_the_json_says_what_the_diagnosis_says(capsys):
    diagnosis = diagnose()
    print_diagnosis(diagnosis, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is True
    assert found["installed"] == diagnosis.installed
    assert [check["name"] for check in found["checks"]] == [c.name for c in diagnosis.checks]
