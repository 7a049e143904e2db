"""The documented installations for NVIDIA GPUs: what is importable there, and what the tools say.

Modules and distributions of a set are faked, and all others hidden.
"""

import hashlib
import re
import sys
import types
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from export.engine.build import build_engine
from export.engine.trt_builder import BuildOptions
from runtime.artefact.engine_file import read_record, write_engine
from runtime.backend import open_backend
from runtime.cuda.device import open_device
from runtime.errors import BackendUnavailable
from runtime.machine.cuda_driver import CudaListing
from runtime.machine.doctor import diagnose
from runtime.tensorrt_api import load_tensorrt
from tests.fake_nvml import FakeGpu, FakeNvml
from tests.fake_trt import build_plan, fake_tensorrt

ROOT = Path(__file__).parents[2]
BACKENDS = ("onnxruntime", "openvino")
MODULES = (
    *("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "pynvml", *BACKENDS),
    *("cuda", "cuda.bindings", "cuda.bindings.driver", "pycuda", "pycuda.driver"),
)
RTX = "rtx 1.7.1"


def extra(name):
    """Names of the distributions of an extra, without versions."""
    text = (ROOT / "pyproject.toml").read_text()
    requirements = re.search(rf"^{name} = \[(.*?)\]\n", text, re.MULTILINE | re.DOTALL)[1]
    return {re.split(r"[\[<>=]", line)[0] for line in re.findall(r'"(.+?)"', requirements)}


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Leave only these distributions and modules, and one GPU."""

    def have(gpu, capability, *, driver, distributions, modules):
        def version(name):
            if name not in distributions:
                raise metadata.PackageNotFoundError(name)
            return distributions[name]

        monkeypatch.setattr("importlib.metadata.version", version)
        for name in MODULES:
            monkeypatch.setitem(sys.modules, name, None)
        for name, found in modules.items():
            if isinstance(found, str):
                found, text = types.ModuleType(name), found
                found.__version__, found.__spec__ = text, types.SimpleNamespace()
            monkeypatch.setitem(sys.modules, name, found)
        for file in ("pycuda_device", "bindings_device"):
            monkeypatch.delitem(sys.modules, f"runtime.cuda.{file}", raising=False)
        sm = tuple(map(int, capability.split(".")))
        nvml = FakeNvml(FakeGpu(name=gpu, capability=sm), driver=driver)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr("runtime.machine.machine.list_cuda_gpus", lambda: None)
        monkeypatch.setattr("runtime.machine.machine._DRIVER_FILE", tmp_path / "driver")
        monkeypatch.setattr("runtime.backends.gpu.open_device", reach_the_gpu)

    return have


class GpuIsReached(Exception):
    """The libraries and the engine passed all checks; ``tests/gpu_rules`` goes on from there."""


def reach_the_gpu(**_):
    raise GpuIsReached


@pytest.fixture
def build(make_artefact, tmp_path, monkeypatch):
    """Build an engine with the TensorRT that is installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make():
        path = tmp_path / "small.engine"
        options = BuildOptions(precision="fp32", tensorrt="tensorrt")
        build_engine(make_artefact(), path, options, command=["esnet-export"], force=True)
        return path

    return make


@pytest.fixture
def engine_of(build, make_artefact, monkeypatch):
    """An engine that another installation built."""

    def make(kind):
        with monkeypatch.context() as other:
            other.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
            gpu = ("NVIDIA GeForce RTX 3060", (8, 6))
            other.setattr("export.engine.build.cuda_gpu", lambda *_: gpu)
            path = build()
        if kind == "tensorrt-rtx":
            record = read_record(path)
            plan = build_plan(fake_tensorrt(RTX), make_artefact().read_bytes(), record.profile)
            sha256, version = (
                hashlib.sha256(plan).hexdigest(),
                {"kind": kind, "version": RTX.removeprefix("rtx ")},
            )
            write_engine(path, plan, replace(record, tensorrt=version, plan_sha256=sha256))
        return path

    return make


def row(diagnosis, task):
    """The check of a task: ``(is_ok, detail, fix)``; ``None`` if it is not listed."""
    found = [c for c in diagnosis.checks if c.name.endswith(task)]
    return (found[0].is_ok, found[0].detail, found[0].fix) if found else None


def pins():
    """The pins of the GTX 10xx requirements: distribution to version."""
    text = (ROOT / "requirements-gtx10xx.txt").read_text()
    found = re.findall(r"^([\w-]+)==([\d.]+?)(?:\.\*)?$", text, re.MULTILINE)
    return {name.replace("_", "-"): version for name, version in found}


def test_the_image_for_gtx10xx_installs_the_pins():
    text = (ROOT / "scripts" / "docker" / "gtx10xx.Dockerfile").read_text()
    copied = [line.split()[1] for line in text.splitlines() if line.startswith("COPY")]
    assert copied == ["requirements-gtx10xx.txt", "."]
    assert "pip install --no-cache-dir -r requirements-gtx10xx.txt" in text
    assert text.index("whl/cpu") < text.index("-r requirements"), "torch would replace cuDNN"
    pins = (ROOT / "requirements-gtx10xx.txt").read_text()
    (python,) = re.findall(r"^FROM python:([\d.]+)", text, re.MULTILINE)
    assert f"Python {python} is the newest that TensorRT 8.6.1 has bindings for" in pins
    folders = re.findall(r"\$PACKAGES/(\w+)(?:/(\w+)/lib)?", text)
    assert folders == [
        *(("tensorrt_libs", ""), ("nvidia", "cudnn"), ("nvidia", "cublas")),
        ("nvidia", "cuda_runtime"),
    ]
    assert f"PACKAGES=/usr/local/lib/python{python}/site-packages" in text


@pytest.fixture
def gtx10xx(install):
    assert pins() == {
        "tensorrt-libs": "8.6.1",
        "tensorrt-bindings": "8.6.1",
        "nvidia-cublas-cu12": "12.1",
        "nvidia-cuda-runtime-cu12": "12.1",
        "nvidia-cudnn-cu12": "8.9.7.29",
        "cuda-bindings": "12.9",
    }
    install(
        "NVIDIA GeForce GTX 1080 Ti",
        "6.1",
        driver="535.183.01",
        distributions={**pins(), "onnxruntime": "1.23.0", "openvino": "2025.3.0"},
        modules={
            "tensorrt_bindings": fake_tensorrt("8.6.1", sm=(6, 1)),
            "cuda.bindings": "12.9.1",
            "onnxruntime": "1.23.0",
            "openvino": "2025.3.0",
        },
    )


def test_gtx10xx_is_complete_for_the_doctor(gtx10xx):
    diagnosis = diagnose()
    assert row(diagnosis, "engines: tensorrt") == (True, "8.6.1", "")
    assert row(diagnosis, "cuda-bindings or pycuda") == (True, "12.9.1", "")
    assert row(diagnosis, "engines: tensorrt-rtx") is None
    assert diagnosis.installed["tensorrt-bindings"] == "8.6.1"
    assert "tensorrt" not in diagnosis.installed
    assert diagnosis.warnings == ()
    assert diagnosis.can_run


def test_gtx10xx_builds_and_opens_an_engine(gtx10xx, build):
    path = build()
    assert load_tensorrt("tensorrt").version == "8.6.1"
    assert read_record(path).target["sms"] == ["6.1"]
    with pytest.raises(GpuIsReached):
        open_backend(path)


def test_gtx10xx_does_not_open_an_engine_of_rtx(gtx10xx, engine_of):
    with pytest.raises(BackendUnavailable, match="tensorrt_rtx"):
        open_backend(engine_of("tensorrt-rtx"))


def gpu_set(install, driver):
    assert extra("gpu") == {
        "onnxruntime-gpu",
        "tensorrt",
        "cuda-bindings",
        "nvidia-ml-py",
    }
    install(
        "NVIDIA GeForce RTX 3060",
        "8.6",
        driver=driver,
        distributions={
            "onnxruntime-gpu": "1.31.1",
            "tensorrt": "11.4.0.106",
            "tensorrt-cu13-bindings": "11.4.0.106",
            "cuda-bindings": "13.0.1",
        },
        modules={
            "tensorrt": fake_tensorrt("11.4.0"),
            "cuda.bindings": "13.0.1",
            "onnxruntime": "1.31.1",
        },
    )


def test_gpu_builds_and_opens_an_engine(install, build, engine_of):
    gpu_set(install, "580.95.05")
    diagnosis = diagnose()
    assert row(diagnosis, "engines: tensorrt") == (True, "11.4.0", "")
    assert row(diagnosis, "cuda-bindings or pycuda") == (True, "13.0.1", "")
    assert row(diagnosis, "onnxruntime") == (True, "1.31.1", "")
    assert row(diagnosis, "engines: tensorrt-rtx")[2] == "pip install 'esnet-deploy[rtx]'"
    assert diagnosis.warnings == ()
    assert diagnosis.can_run
    with pytest.raises(GpuIsReached):
        open_backend(build())
    with pytest.raises(BackendUnavailable) as caught:
        open_backend(engine_of("tensorrt-rtx"))
    assert caught.value.hint == "pip install 'esnet-deploy[rtx]'"


def test_gpu_behind_an_old_driver_is_warned_of(install):
    gpu_set(install, "550.54.15")
    (warning,) = diagnose().warnings
    assert warning.startswith("driver 550.54.15 is too old for tensorrt-cu13-bindings 11.4.0.106")


def rtx_set(install, gpu="NVIDIA GeForce RTX 3060", capability="8.6"):
    assert extra("rtx") == {"tensorrt-rtx", "cuda-bindings", "nvidia-ml-py"}
    install(
        gpu,
        capability,
        driver="580.95.05",
        distributions={
            "tensorrt-rtx": "1.7.1.116",
            "tensorrt-rtx-cu13-bindings": "1.7.1.116",
            "cuda-bindings": "13.0.1",
        },
        modules={"tensorrt_rtx": fake_tensorrt(RTX), "cuda.bindings": "13.0.1"},
    )


def test_rtx_runs_engines_without_any_other_backend(install, engine_of):
    rtx_set(install)
    diagnosis = diagnose()
    assert row(diagnosis, "engines: tensorrt-rtx")[0]
    assert row(diagnosis, "cuda-bindings or pycuda") == (True, "13.0.1", "")
    assert row(diagnosis, "openvino")[0] is False
    assert diagnosis.warnings == ()
    assert diagnosis.can_run
    with pytest.raises(GpuIsReached):
        open_backend(engine_of("tensorrt-rtx"))
    with pytest.raises(BackendUnavailable, match="tensorrt"):
        open_backend(engine_of("tensorrt"))


@pytest.mark.parametrize(
    ("gpu", "capability", "install_line"),
    [
        ("NVIDIA H100 80GB HBM3", "9.0", "pip install 'esnet-deploy[gpu]'"),
        ("NVIDIA GeForce GTX 1080 Ti", "6.1", "tensorrt_bindings==8.6.1"),
    ],
)
def test_rtx_on_a_gpu_that_it_does_not_support_is_warned_of(install, gpu, capability, install_line):
    rtx_set(install, gpu, capability)
    (warning,) = diagnose().warnings
    assert f"tensorrt-rtx-cu13-bindings 1.7.1.116 does not run on SM {capability}" in warning
    assert install_line in warning


def test_an_engine_for_ampere_and_newer_names_the_missing_tensorrt(install, engine_of):
    install("NVIDIA GeForce RTX 3060", "8.6", driver="580.95.05", distributions={}, modules={})
    path = engine_of("tensorrt")
    record = read_record(path)
    target = {**record.target, "sms": ["8.0+"]}
    write_engine(path, path.read_bytes(), replace(record, target=target))
    with pytest.raises(BackendUnavailable, match="tensorrt, which is not installed") as caught:
        open_backend(path)
    assert caught.value.hint == "pip install 'esnet-deploy[gpu]'"


def test_pycuda_needs_a_tensorrt_beside_it(install, engine_of, monkeypatch):
    assert extra("pycuda") == {"pycuda", "nvidia-ml-py"}
    driver = types.ModuleType("pycuda.driver")
    driver.Error = driver.MemoryError = driver.LogicError = Exception
    driver.init = lambda: None
    driver.Device = types.SimpleNamespace(count=lambda: 0)
    install(
        "NVIDIA GeForce RTX 3060",
        "8.6",
        driver="580.95.05",
        distributions={"pycuda": "2026.1"},
        modules={"pycuda": types.ModuleType("pycuda"), "pycuda.driver": driver},
    )
    sys.modules["pycuda"].VERSION_TEXT = "2026.1"  # PyCUDA has no __version__
    sys.modules["pycuda"].driver = driver
    diagnosis = diagnose()
    assert row(diagnosis, "cuda-bindings or pycuda") == (True, "2026.1", "")
    assert row(diagnosis, "engines: tensorrt") == (
        *(False, "not installed", "pip install 'esnet-deploy[gpu]'"),
    )
    assert not diagnosis.can_run
    monkeypatch.setattr("runtime.cuda.device.list_cuda_gpus", lambda: CudaListing((), ""))
    with pytest.raises(BackendUnavailable, match="pycuda: the driver lists no GPU"):
        open_device()
    with pytest.raises(BackendUnavailable, match="tensorrt") as caught:
        open_backend(engine_of("tensorrt"))
    assert "esnet-deploy[gpu]" in caught.value.hint
