"""What the machine is and what is installed, from the system itself."""

import json
import re
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from runtime.errors import InvalidInput
from runtime.machine.doctor import diagnose
from runtime.machine.doctor_report import print_diagnosis
from runtime.machine.gpus import gpus_at_hand
from runtime.machine.machine import cpu_flags, cpu_name, num_cores, nvidia_cards, nvidia_gpus

PASCAL_PINS = Path(__file__).parents[2] / "requirements-gtx10xx.txt"


@pytest.fixture
def fake_smi(tmp_path, monkeypatch):
    """Put a program named ``nvidia-smi`` before all others."""

    def install(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


@pytest.fixture
def card(fake_smi):
    """Put a card into this machine; a driver without a capability does not know the field."""

    def insert(name, driver="580.95.05", capability=None):
        told = f"echo {capability}" if capability else "echo Field is not a valid field; exit 2"
        line = f"echo '{name}, {driver}, 11264 MiB'"
        fake_smi(f'case "$1" in *compute_cap*) {told};; *) {line};; esac')

    return insert


@pytest.fixture
def pretend_installed(tmp_path, monkeypatch):
    """Put a distribution's metadata where Python looks for it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )

    return install


def only_gpu():
    (advice,) = diagnose().gpus
    return advice


def warnings_about(words):
    return [warning for warning in diagnose().warnings if words in warning]


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


def test_a_card_is_described_by_its_driver(card):
    card("NVIDIA GeForce RTX 3060", capability="8.6")
    (found,) = nvidia_cards()
    assert (found.name, found.driver) == ("NVIDIA GeForce RTX 3060", "580.95.05")
    assert (found.memory, found.compute_capability) == ("11264 MiB", "8.6")


def test_an_old_driver_does_not_tell_the_capability(card):
    card("GeForce GTX 1080 Ti", "460.91.03")
    assert [found.compute_capability for found in nvidia_cards()] == [None]


def test_each_of_several_cards_has_its_own_capability(fake_smi):
    lines = "echo 'NVIDIA TITAN Xp, 580.1, 1 MiB'; echo 'NVIDIA H100 PCIe, 580.1, 1 MiB'"
    fake_smi(f'case "$1" in *compute_cap*) echo 6.1; echo 9.0;; *) {lines};; esac')
    assert gpus_at_hand() == (("NVIDIA TITAN Xp", (6, 1)), ("NVIDIA H100 PCIe", (9, 0)))


def test_what_an_old_driver_does_not_tell_is_known_by_name(card):
    card("GeForce GTX 1080 Ti", "460.91.03")
    assert gpus_at_hand() == (("GeForce GTX 1080 Ti", (6, 1)),)


def test_a_card_that_nobody_knows_is_named(card):
    card("NVIDIA X9", "460.91.03")
    with pytest.raises(InvalidInput, match="unknown GPU 'NVIDIA X9'"):
        gpus_at_hand()


def test_the_capability_that_a_driver_tells_beats_the_table(card):
    card("NVIDIA X9", capability="13.1")
    assert gpus_at_hand() == (("NVIDIA X9", (13, 1)),)


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
    assert [warning.partition(" are")[0] for warning in warnings_about("overwrite each other")] == [
        "onnxruntime and onnxruntime-gpu",
        "opencv-python and opencv-python-headless",
    ]


def test_a_machine_with_a_gpu_is_checked_for_tensorrt(fake_smi):
    fake_smi("echo 'Tesla T4, 535.1, 1 MiB'")
    diagnosis = diagnose()
    assert diagnosis.machine["gpu"] == "Tesla T4, 535.1, 1 MiB"
    assert "build engines: tensorrt" in [check.name for check in diagnosis.checks]


def test_both_onnxruntimes_are_a_problem_with_a_fix(pretend_installed, card):
    card("NVIDIA GeForce RTX 3060", capability="8.6")
    pretend_installed("onnxruntime-gpu", "1.31.1")
    (warning,) = warnings_about("onnxruntime and onnxruntime-gpu are both installed")
    assert warning.endswith(
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'esnet-deploy[gpu]'"
    )


def test_the_fix_for_both_onnxruntimes_fits_the_card(pretend_installed, card):
    card("NVIDIA GeForce GTX 1080 Ti", capability="6.1")
    pretend_installed("onnxruntime-gpu", "1.26.0")
    (warning,) = warnings_about("onnxruntime and onnxruntime-gpu are both installed")
    assert warning.endswith("&& pip install onnxruntime-gpu==1.26.0")


def test_a_1080_ti_is_told_its_limits(card):
    card("NVIDIA GeForce GTX 1080 Ti", capability="6.1")
    assert only_gpu().support == (
        "NVIDIA GeForce GTX 1080 Ti (SM 6.1): TensorRT 8.6.1 at most, Python 3.11 at most, driver R580 "
        "at most; FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8 or FP32"
    )


def test_a_1080_ti_gets_the_pins_of_its_requirements_file(card):
    card("NVIDIA GeForce GTX 1080 Ti", capability="6.1")
    (install,) = only_gpu().installs
    pins = re.findall(r"^(?:--extra-index-url .*|\S+==\S+)$", PASCAL_PINS.read_text(), re.MULTILINE)
    assert len(pins) == 7
    assert [pin for pin in pins if pin not in install] == []


def test_a_1080_ti_is_not_sent_to_a_tensorrt_that_left_it_behind(card):
    card("NVIDIA GeForce GTX 1080 Ti", capability="6.1")
    assert "tensorrt_bindings==8.6.1" in check("engines: tensorrt").fix


def test_an_rtx_3060_may_have_either_tensorrt(card):
    card("NVIDIA GeForce RTX 3060", capability="8.6")
    advice = only_gpu()
    assert advice.support.startswith("NVIDIA GeForce RTX 3060 (SM 8.6): TensorRT up to 11.4")
    assert advice.installs == (
        "pip install 'esnet-deploy[gpu]'",
        "pip install 'esnet-deploy[rtx]'",
    )


def test_no_rtx_is_promised_to_an_h100(card):
    card("NVIDIA H100 80GB HBM3", capability="9.0")
    assert only_gpu().installs == ("pip install 'esnet-deploy[gpu]'",)


def test_a_v100_stays_with_its_last_tensorrt(card):
    card("Tesla V100-SXM2-16GB", capability="7.0")
    assert only_gpu().installs == ("pip install 'tensorrt-cu12==10.4.*' 'cuda-bindings==12.9.*'",)


def test_a_jetson_has_its_tensorrt_from_jetpack():
    (advice,) = diagnose("Jetson Orin Nano").gpus
    assert "JetPack" in advice.installs[0]


def test_a_card_behind_an_old_driver_is_advised_by_its_name(card):
    card("GeForce GTX 1080 Ti", "460.91.03")
    assert "(SM 6.1): TensorRT 8.6.1 at most" in only_gpu().support


def test_a_card_that_nobody_knows_does_not_silence_the_others(fake_smi):
    lines = "echo 'GeForce MX150, 460.1, 1 MiB'; echo 'GeForce GTX 1080, 460.1, 1 MiB'"
    fake_smi(f'case "$1" in *compute_cap*) exit 2;; *) {lines};; esac')
    unknown, known = diagnose().gpus
    assert "neither its driver nor our table knows" in unknown.support
    assert "(SM 6.1)" in known.support


def test_a_card_that_is_not_here_can_be_asked_about():
    (advice,) = diagnose("RTX 4090").gpus
    assert advice.support.startswith("RTX 4090 (SM 8.9)")


def test_an_unknown_card_cannot_be_asked_about():
    with pytest.raises(InvalidInput, match="unknown GPU 'Voodoo 2'"):
        diagnose("Voodoo 2")


def test_tensorrt_8_6_is_found_by_the_name_of_its_bindings(card, monkeypatch):
    card("NVIDIA GeForce GTX 1080 Ti", capability="6.1")
    bindings = types.ModuleType("tensorrt_bindings")
    bindings.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", bindings)
    found = check("engines: tensorrt")
    assert (found.is_ok, found.detail) == (True, "8.6.1")


@pytest.mark.parametrize(
    ("distribution", "version", "driver", "lowest"),
    [
        pytest.param("tensorrt-bindings", "8.6.1", "470.256.02", "R525", id="8.6"),
        pytest.param("tensorrt-cu12-bindings", "10.4.0", "470.256.02", "R525", id="10-cuda-12"),
        pytest.param("tensorrt-cu12-bindings", "11.4.0.106", "525.60.13", "R535", id="11-cuda-12"),
        pytest.param("tensorrt-cu13-bindings", "11.4.0.106", "575.64", "R580", id="11-cuda-13"),
    ],
)
def test_a_driver_that_is_too_old_is_said(
    pretend_installed, card, distribution, version, driver, lowest
):
    card("NVIDIA GeForce RTX 3060", driver, "8.6")
    pretend_installed(distribution, version)
    (warning,) = warnings_about(f"driver {driver} is too old for {distribution} {version}")
    assert f"install driver {lowest} or newer" in warning


def test_a_driver_of_cuda_12_may_stay_with_a_tensorrt_of_cuda_12(pretend_installed, card):
    card("NVIDIA GeForce RTX 3060", "550.54.15", "8.6")
    pretend_installed("tensorrt-cu13-bindings", "11.4.0.106")
    (warning,) = warnings_about("too old for tensorrt-cu13-bindings")
    assert warning.endswith("or pip install tensorrt-cu12")


@pytest.mark.parametrize("driver", ["580.65.06", "[N/A]"])
def test_a_driver_that_is_new_enough_or_unknown_is_not_complained_of(
    pretend_installed, card, driver
):
    card("NVIDIA GeForce RTX 3060", driver, "8.6")
    pretend_installed("tensorrt-cu13-bindings", "11.4.0.106")
    assert warnings_about("driver") == []


def test_a_tensorrt_that_left_the_card_behind_is_said(pretend_installed, card):
    card("NVIDIA GeForce GTX 1080 Ti", capability="6.1")
    pretend_installed("tensorrt-cu12-bindings", "10.4.0")
    (warning,) = warnings_about("tensorrt-cu12-bindings 10.4.0 does not run on SM 6.1")
    assert "8.6.1 is the last that does" in warning


def test_an_onnxruntime_that_left_the_card_behind_is_said(pretend_installed, card):
    card("Tesla V100-SXM2-16GB", capability="7.0")
    pretend_installed("onnxruntime-gpu", "1.31.1")
    (warning,) = warnings_about("onnxruntime-gpu 1.31.1 does not run on SM 7.0")
    assert warning.endswith("&& pip install onnxruntime-gpu==1.26.0")


@pytest.mark.parametrize(
    ("name", "capability", "distribution", "version"),
    [
        ("Tesla V100-SXM2-16GB", "7.0", "tensorrt-cu12-bindings", "10.4.0"),
        ("NVIDIA GeForce GTX 1080 Ti", "6.1", "tensorrt-bindings", "8.6.1"),
        ("NVIDIA GeForce RTX 5090", "12.0", "tensorrt-cu13-bindings", "12.0.0"),
    ],
)
def test_what_fits_the_card_is_not_complained_of(
    pretend_installed, card, name, capability, distribution, version
):
    card(name, capability=capability)
    pretend_installed(distribution, version)
    assert warnings_about("does not run on") == []


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


def test_the_text_has_the_advice_and_the_commands_for_a_card(capsys):
    print_diagnosis(diagnose("GTX 1080 Ti"), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("gpu: GTX 1080 Ti (SM 6.1)"))
    assert "pip install --extra-index-url https://pypi.nvidia.com" in lines[start + 1]


def test_the_json_says_what_the_diagnosis_says(capsys):
    diagnosis = diagnose()
    print_diagnosis(diagnosis, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is True
    assert found["installed"] == diagnosis.installed
    assert [check["name"] for check in found["checks"]] == [c.name for c in diagnosis.checks]
