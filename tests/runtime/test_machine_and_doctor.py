"""The machine, its GPUs through a fake NVML, and the doctor."""

import json
import re
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from runtime.errors import InvalidInput
from runtime.machine.cuda_driver import CudaGpu, CudaListing
from runtime.machine.doctor import diagnose
from runtime.machine.doctor_report import print_diagnosis
from runtime.machine.gpus import cuda_gpu
from runtime.machine.machine import (
    NvidiaGpu,
    cpu_flags,
    cpu_name,
    gpu_states,
    gpu_with_bus_id,
    normalise_bus_id,
    num_cores,
    nvidia_gpus,
    peak_memory_bytes,
)
from runtime.trials import Candidate
from tests.fake_nvml import FUNCTION_NOT_FOUND, GPU_IS_LOST, NOT_SUPPORTED, FakeGpu, FakeNvml

PASCAL_PINS = Path(__file__).parents[2] / "requirements-gtx10xx.txt"


@pytest.fixture(autouse=True)
def nvml(monkeypatch, tmp_path):
    """Install a fake NVML with these GPUs; without a call, this machine has no NVML, CUDA or driver."""
    monkeypatch.setattr("runtime.machine.machine._DRIVER_FILE", tmp_path / "driver")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("runtime.machine.machine.list_cuda_gpus", lambda: None)

    def install(*gpus, **settings):
        module = FakeNvml(*gpus, **settings)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


TITAN = CudaGpu("NVIDIA TITAN Xp", "6.1", 12 << 30, "0000:01:00.0")


@pytest.fixture
def cuda(monkeypatch):
    """Make the CUDA driver list these GPUs."""

    def install(*gpus, problem=""):
        listing = CudaListing(gpus, problem)
        monkeypatch.setattr("runtime.machine.machine.list_cuda_gpus", lambda: listing)

    return install


@pytest.fixture
def load_driver(tmp_path):
    """Make the file that a loaded driver makes, with the text of its version."""

    def load(text=""):
        (tmp_path / "driver").write_text(text)

    return load


@pytest.fixture
def card(nvml):
    """Put one GPU into this machine; ``capability=None``: its driver does not know the query."""

    def insert(name, driver="580.95.05", capability=None):
        query = "nvmlDeviceGetCudaComputeCapability"
        unsupported = {} if capability else {query: FUNCTION_NOT_FOUND}
        major, minor = map(int, (capability or "0.0").split("."))
        nvml(FakeGpu(name=name, capability=(major, minor), unsupported=unsupported), driver=driver)

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


_PEAK = "from runtime.machine.machine import peak_memory_bytes; {}; print(peak_memory_bytes())"


def peak_of_child(work: str) -> int:
    command = [sys.executable, "-c", _PEAK.format(work)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_peak_memory_is_that_of_this_process_alone():
    """``ru_maxrss`` of a child is at least the memory of its parent."""
    memory = bytearray(150_000_000)
    assert len(memory) > peak_of_child("pass") > 1_000_000


def test_peak_memory_counts_what_was_freed():
    assert peak_of_child("bytearray(100_000_000)") > 100_000_000


def test_peak_memory_is_known_to_kernels_without_its_line(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("VmRSS:\t    2184 kB\n")
    monkeypatch.setattr("runtime.machine.machine._STATUS_FILE", tmp_path / "status")
    assert peak_memory_bytes() > 1_000_000


def test_the_cpu_has_flags():
    assert cpu_flags()


def test_a_gpu_is_described_by_nvml(nvml):
    module = nvml(FakeGpu(bus_id="00000000:3B:00.0"))
    (gpu,) = nvidia_gpus()
    assert gpu == NvidiaGpu(
        name="NVIDIA GeForce RTX 3060",
        driver="580.95.05",
        memory_bytes=11264 << 20,
        compute_capability="8.6",
        pci_bus_id="0000:3b:00.0",
        used_bytes=812 << 20,
    )
    assert str(gpu) == "NVIDIA GeForce RTX 3060, 580.95.05, 11264 MiB"
    assert module.inits == 0


def test_old_versions_of_nvidia_ml_py_return_bytes(nvml):
    nvml(FakeGpu())
    expected = nvidia_gpus()
    nvml(FakeGpu(), as_bytes=True)
    assert nvidia_gpus() == expected


def test_no_gpu_without_nvidia_ml_py(nvml):
    assert (nvidia_gpus(), gpu_states()) == ((), ())


def test_no_gpu_when_nvml_does_not_start(nvml):
    nvml(FakeGpu(), has_driver=False)
    assert (nvidia_gpus(), gpu_states()) == ((), ())


QUERIES = [name for name in vars(FakeNvml) if name.startswith("nvmlDevice")]


@pytest.mark.parametrize("error", [NOT_SUPPORTED, GPU_IS_LOST])
@pytest.mark.parametrize("query", [name for name in QUERIES if name != "nvmlDeviceGetCount"])
def test_a_query_that_fails_is_unknown_and_the_other_gpu_is_described(nvml, query, error):
    module = nvml(FakeGpu(), FakeGpu(name="second", unsupported={query: error}))
    first, second = nvidia_gpus()
    assert first.name == "NVIDIA GeForce RTX 3060"
    has_name = query not in ("nvmlDeviceGetName", "nvmlDeviceGetHandleByIndex")
    assert second.name == ("second" if has_name else "unknown")
    assert len(gpu_states()) == 2
    assert module.inits == 0


def test_everything_may_be_unknown(nvml):
    unsupported = dict.fromkeys(QUERIES, NOT_SUPPORTED)
    del unsupported["nvmlDeviceGetHandleByIndex"]
    nvml(FakeGpu(unsupported=unsupported), not_exported=("nvmlSystemGetDriverVersion",))
    assert list(map(str, nvidia_gpus())) == ["unknown, unknown, unknown"]
    assert gpu_states() == (
        "unknown: unknown of unknown MHz, unknown C, unknown W, throttle unknown",
    )


def test_the_state_of_each_gpu_names_its_bus_id(nvml):
    nvml(FakeGpu(), FakeGpu(bus_id="00000000:C1:00.0", milliwatts=50, reasons=0))
    assert gpu_states() == (
        "0000:01:00.0: 1980 of 2100 MHz, 45 C, 312.10 W, throttle 0x4",
        "0000:c1:00.0: 1980 of 2100 MHz, 45 C, 0.05 W, throttle 0x0",
    )


def test_drivers_before_r535_know_the_throttle_reasons_by_their_old_name(nvml):
    nvml(FakeGpu(), not_exported=("nvmlDeviceGetCurrentClocksEventReasons",))
    assert gpu_states()[0].endswith("throttle 0x4")


def test_gpus_are_matched_by_bus_id_not_by_order(nvml):
    nvml(FakeGpu(name="first"), FakeGpu(name="second", bus_id="00000000:3B:00.0"))
    assert gpu_with_bus_id("0000:3B:00.0").name == "second"
    assert gpu_with_bus_id("00000000:01:00.0").name == "first"
    assert gpu_with_bus_id("0000:02:00.0") is None


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("00010000:E1:00.0", "10000:e1:00.0"),
        ("unknown", "unknown"),
    ],
)
def test_bus_ids_have_one_spelling(text, normalised):
    assert normalise_bus_id(text) == normalised


def test_gpus_stand_in_cudas_order_and_are_matched_by_bus_id(nvml, cuda):
    nvml(
        FakeGpu(name="NVIDIA TITAN Xp", capability=(6, 1)),
        FakeGpu(name="NVIDIA RTX 4090", capability=(8, 9), bus_id="00000000:3B:00.0"),
        driver="550.54.15",
    )
    cuda(CudaGpu("NVIDIA RTX 4090", "8.9", 24 << 30, "0000:3B:00.0"), TITAN)
    assert [(gpu.name, gpu.driver) for gpu in nvidia_gpus()] == [
        ("NVIDIA RTX 4090", "550.54.15"),
        ("NVIDIA TITAN Xp", "550.54.15"),
    ]
    assert cuda_gpu() == cuda_gpu("cuda:0") == ("NVIDIA RTX 4090", (8, 9))
    assert cuda_gpu(1) == ("NVIDIA TITAN Xp", (6, 1))
    with pytest.raises(InvalidInput, match="no GPU cuda:2: CUDA lists 2"):
        cuda_gpu("2")
    assert [advice.support[:15] for advice in diagnose().gpus] == [
        "NVIDIA RTX 4090",
        "NVIDIA TITAN Xp",
    ]


def test_the_doctor_checks_for_the_gpu_that_is_asked_for(nvml, cuda):
    nvml(
        FakeGpu(name="NVIDIA RTX 4090", capability=(8, 9), bus_id="00000000:3B:00.0"),
        FakeGpu(name="NVIDIA TITAN Xp", capability=(6, 1)),
    )
    cuda(CudaGpu("NVIDIA RTX 4090", "8.9", 24 << 30, "0000:3B:00.0"), TITAN)
    diagnosis = diagnose(device="cuda:1")
    assert [advice.support[:15] for advice in diagnosis.gpus] == ["NVIDIA TITAN Xp"]
    fixes = {check.name: check.fix for check in diagnosis.checks}
    assert "8.6.1" in fixes["build engines: tensorrt"]
    assert [gpu[:22] for gpu in diagnosis.machine["gpu"].split("; ")] == [
        "cuda:0 NVIDIA RTX 4090",
        "cuda:1 NVIDIA TITAN Xp",
    ]
    with pytest.raises(InvalidInput, match="no GPU cuda:2"):
        diagnose(device=2)


def test_a_gpu_that_is_hidden_from_cuda_comes_last(nvml, cuda):
    nvml(FakeGpu(name="hidden", bus_id="00000000:3B:00.0"), FakeGpu(name="NVIDIA TITAN Xp"))
    cuda(TITAN)
    assert [gpu.name for gpu in nvidia_gpus()] == ["NVIDIA TITAN Xp", "hidden"]
    assert [gpu.index for gpu in nvidia_gpus()] == [0, None]
    with pytest.raises(InvalidInput, match="no GPU cuda:1"):
        cuda_gpu(1)


def test_a_driver_without_nvml_lists_its_gpus(cuda, load_driver):
    cuda(TITAN)
    load_driver("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 2024")
    (gpu,) = nvidia_gpus()
    assert str(gpu) == "NVIDIA TITAN Xp, 535.183.01, 12288 MiB"
    assert (gpu.compute_capability, gpu.pci_bus_id) == ("6.1", "0000:01:00.0")
    assert cuda_gpu() == ("NVIDIA TITAN Xp", (6, 1))
    diagnosis = diagnose()
    assert diagnosis.machine["gpu"] == f"cuda:0 {gpu}, 0000:01:00.0"
    assert warnings_about("nvidia-ml-py") == [
        "clocks and temperatures of the GPU are unknown without nvidia-ml-py: pip install nvidia-ml-py"
    ]
    assert warnings_about("no GPU is listed") == []


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("", "unknown"),
    ],
)
def test_the_driver_version_is_read_from_the_kernel_module(cuda, load_driver, text, driver):
    cuda(TITAN)
    load_driver(f"NVRM version: {text}")
    assert nvidia_gpus()[0].driver == driver


def test_an_old_driver_without_nvml_is_said(pretend_installed, cuda, load_driver):
    cuda(CudaGpu("NVIDIA GeForce RTX 3060", "8.6", 12 << 30, "0000:01:00.0"))
    load_driver("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12")
    pretend_installed("tensorrt-rtx-cu13-bindings", "1.7.1")
    (warning,) = warnings_about("driver 535.183.01 is too old for tensorrt-rtx-cu13-bindings 1.7.1")
    assert "install driver R580 or newer" in warning


def test_without_libcuda_the_first_gpu_is_that_of_nvml(nvml):
    nvml(FakeGpu(name="NVIDIA TITAN Xp", capability=(6, 1)), FakeGpu())
    assert cuda_gpu() == ("NVIDIA TITAN Xp", (6, 1))


def test_no_first_gpu_without_a_gpu():
    assert cuda_gpu() is None


def test_a_capability_that_nvml_does_not_know_is_looked_up_by_name(card):
    card("GeForce GTX 1080 Ti", "460.91.03")
    assert cuda_gpu() == ("GeForce GTX 1080 Ti", (6, 1))


def test_a_gpu_that_is_not_in_the_table_is_named(card):
    card("NVIDIA X9", "460.91.03")
    with pytest.raises(InvalidInput, match="unknown GPU 'NVIDIA X9'"):
        cuda_gpu()


def test_the_capability_of_nvml_takes_precedence_over_the_table(card):
    card("NVIDIA X9", capability="13.1")
    assert cuda_gpu() == ("NVIDIA X9", (13, 1))


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        pytest.param(None, "libcuda.so.1 is not found", id="no-libcuda"),
        pytest.param(
            "CUDA_ERROR_NO_DEVICE", "the CUDA driver says CUDA_ERROR_NO_DEVICE", id="no-device"
        ),
    ],
)
def test_a_driver_that_lists_no_gpu_is_not_no_driver(load_driver, cuda, problem, reason):
    load_driver()
    if problem:
        cuda(problem=problem)
    diagnosis = diagnose()
    reason = f"{reason}, nvidia-ml-py is not installed"
    assert diagnosis.machine["gpu"] == f"unknown ({reason})"
    assert [warning for warning in diagnosis.warnings if "nvidia-ml-py" in warning] == [
        f"an NVIDIA driver is loaded, but no GPU is listed ({reason}): pip install nvidia-ml-py; "
        "in a container, run it with --gpus all"
    ]
    assert "build engines: tensorrt" in [check.name for check in diagnosis.checks]


def test_nvml_that_does_not_start_is_not_no_driver(load_driver, nvml):
    load_driver()
    nvml(FakeGpu(), has_driver=False)
    assert diagnose().machine["gpu"] == "unknown (libcuda.so.1 is not found, NVML lists none)"
    (warning,) = warnings_about("no GPU is listed")
    assert "pip install" not in warning


def test_nvidia_ml_py_is_not_asked_for_without_a_driver_or_when_it_is_there(nvml, load_driver):
    assert warnings_about("nvidia-ml-py") == []
    assert diagnose().machine["gpu"] == "none (no driver)"
    load_driver()
    nvml(FakeGpu())
    assert warnings_about("nvidia-ml-py") == []


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


def test_torch_is_found_without_importing_it():
    code = (
        "from runtime.machine.doctor import diagnose; diagnose(); import sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "onnxruntime" in done.stdout.split()
    assert "torch" not in done.stdout.split()
    assert check("torch").detail == metadata.version("torch")


def test_a_missing_torch_gets_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert (check("torch").is_ok, check("torch").detail) == (False, "not installed")
    assert check("torch").fix == "pip install 'esnet-deploy[export]'"


def test_an_empty_folder_of_torch_is_broken(monkeypatch):
    empty = types.SimpleNamespace(origin=None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: empty)
    assert check("torch").detail == "broken: an empty folder is left"


def test_the_times_of_the_trial_are_shown_the_fastest_first(monkeypatch):
    times = {Candidate("openvino", "fp32"): 2.0, Candidate("openvino", "bf16"): 1.04}
    monkeypatch.setattr("runtime.machine.doctor.cached_times", {"fp32": times, "int8": {}}.get)
    machine = diagnose().machine
    assert machine["trial fp32"] == "openvino bf16 1.0 ms, openvino fp32 2.0 ms"
    assert machine["trial int8"].startswith("none yet: ")


def test_twins_that_overwrite_each_other_are_warned_of(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    assert [warning.partition(" are")[0] for warning in warnings_about("overwrite each other")] == [
        "onnxruntime and onnxruntime-gpu",
        "opencv-python and opencv-python-headless",
    ]


def test_a_machine_with_a_gpu_is_checked_for_tensorrt(nvml):
    nvml(FakeGpu(name="Tesla T4", memory_bytes=1 << 20), driver="535.1")
    diagnosis = diagnose()
    gpu = "not listed by CUDA: Tesla T4, 535.1, 1 MiB, 812 MiB in use, 0000:01:00.0"
    assert diagnosis.machine["gpu"] == gpu
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
        "at most; FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8, the fast choice there, or FP32"
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


def test_a_card_that_nobody_knows_does_not_silence_the_others(nvml):
    query = "nvmlDeviceGetCudaComputeCapability"
    nvml(
        FakeGpu(name="GeForce MX150", unsupported={query: FUNCTION_NOT_FOUND}),
        FakeGpu(name="GeForce GTX 1080", unsupported={query: FUNCTION_NOT_FOUND}),
    )
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


@pytest.mark.parametrize("driver", ["580.65.06", "", "unknown"])
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
    assert "the last version that does is 8.6.1" in warning


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
    assert warnings_about(f"{distribution} {version} does not run on") == []


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
