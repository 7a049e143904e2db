"""Check machine and environment: installed libraries, usable backends, and commands that fix problems."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from runtime.errors import InvalidInput
from runtime.machine.gpus import Sm, gpu_at, sm_of, sm_text
from runtime.machine.machine import (
    NvidiaGpu,
    cpu_flags,
    cpu_name,
    driver_problem,
    has_nvml,
    nvidia_gpus,
)
from runtime.machine.support import advice_for, limits_of, version_numbers
from runtime.tensorrt_api import KINDS, TENSORRT, TENSORRT_RTX
from runtime.trials import cached_times

_DISTRIBUTIONS = (
    "numpy",
    "opencv-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "pycuda",
    "nvidia-ml-py",
    "torch",
    "onnx",
    "safetensors",
)
# Import name -> distributions that install into the same folder. The second overwrites the first, and
# removing one leaves the folder empty.
_CONFLICTS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "cv2": ("opencv-python", "opencv-python-headless"),
}
# Distributions of TensorRT. 8.6 and those with cu12 in their name need CUDA 12.
_TENSORRTS = ("tensorrt-bindings", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings")
_TENSORRT_RTXS = ("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings")
# CUDA -> lowest driver branch; TensorRT 11 on CUDA 12 needs R535 by its prerequisites page. Source:
# docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_LOWEST_DRIVER = {12: 525, 13: 580}
_LOWEST_DRIVER_TENSORRT_11 = 535
# The pins of requirements-gtx10xx.txt. tensorrt_libs on PyPI is a placeholder. cuDNN without a pin would be
# version 9, which lacks libcudnn.so.8.
_INSTALL_8_6 = (
    "python3.11 -m venv .venv-gtx10xx && . .venv-gtx10xx/bin/activate && "
    "pip install --extra-index-url https://pypi.nvidia.com tensorrt_libs==8.6.1 tensorrt_bindings==8.6.1 "
    "nvidia-cudnn-cu12==8.9.7.29 'nvidia-cublas-cu12==12.1.*' 'nvidia-cuda-runtime-cu12==12.1.*' "
    "'cuda-bindings==12.9.*'"
)
_CUDA_12_BINDINGS = "pip install 'cuda-bindings==12.9.*'"
_INSTALL_JETSON = "part of JetPack; python3 -m venv --system-site-packages .venv sees it"
# The last onnxruntime-gpu on PyPI with kernels for Pascal and Volta.
_LAST_ONNXRUNTIME_GPU = "1.26.0"
_EMPTY = "broken: an empty folder is left"
_FRAMES = "read and write frames: cv2"
_COPY = "copy to the GPU: cuda-bindings or pycuda"
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    """Task and library, such as ``run on CPU: openvino``."""
    is_ok: bool
    """True if it works here."""
    detail: str
    """Version of the library, or the problem."""
    fix: str = ""
    """Command that fixes it; empty if it works."""


@dataclass(frozen=True, slots=True)
class GpuAdvice:
    """Advice for one GPU."""

    support: str
    """Newest software that supports it, and precisions to avoid."""
    installs: tuple[str, ...] = ()
    """Commands that install a TensorRT for it; one of them is enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """The doctor's findings."""

    machine: dict[str, str]
    """Python, system, CPU with its instruction sets, GPUs."""
    installed: dict[str, str | None]
    """Version of each distribution; ``None`` if it is not installed."""
    checks: tuple[Check, ...]
    """Results of the checks, each with the command that fixes it."""
    warnings: tuple[str, ...]
    """Installations that break each other, or do not fit the GPU or its driver."""
    gpus: tuple[GpuAdvice, ...] = ()
    """Advice for each GPU, or for the one that was asked for."""

    @property
    def can_run(self) -> bool:
        """True if a model can run here: OpenCV and at least one backend load.

        For engines, that is a TensorRT and a CUDA library, on a machine with a GPU.
        """
        working = {check.name for check in self.checks if check.is_ok}
        runs_onnx = any(name.startswith("run on") for name in working)
        runs_engines = _COPY in working and any(name.startswith("build eng") for name in working)
        return _FRAMES in working and (runs_onnx or runs_engines)


def diagnose(gpu: str | None = None, *, device: str | int | None = None) -> Diagnosis:
    """Check this machine and this environment.

    Args:
        gpu: GPU to give advice for, such as ``GTX 1080 Ti``; ``None`` takes those of this machine.
        device: GPU of this machine to check for, as for ``parse_device``; ``None`` takes the first.

    Raises:
        InvalidInput: Unknown GPU.
    """
    asked = None if gpu is None else (gpu, sm_of(gpu))
    found = nvidia_gpus()
    chosen = found if device is None else (gpu_at(found, device),)
    gpus = [(item.name, _sm_of_gpu(item)) for item in chosen]
    sm = gpus[0][1] if gpus else None
    problem = None if found else driver_problem()
    has_gpu = bool(found) or problem is not None
    no_gpu = "none (no driver)" if problem is None else f"unknown ({problem})"
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu features": ", ".join(flag for flag in _ISA if flag in cpu_flags()) or "unknown",
        "gpu": "; ".join(item.as_text() for item in found) or no_gpu,
        "trial fp32": _trial_text("fp32"),
        "trial int8": _trial_text("int8"),
        "esnet-deploy": _version("esnet-deploy") or "not installed, run from its source folder",
    }
    return Diagnosis(
        machine=machine,
        installed=_installed(),
        checks=tuple(_checks(has_gpu=has_gpu, sm=sm)),
        warnings=(
            *_listing_warnings(problem, is_found=bool(found)),
            *_conflict_warnings(has_gpu=has_gpu, sm=sm),
            *_driver_warnings({item.driver for item in found}),
            *_support_warnings({sm for _, sm in gpus if sm is not None}),
        ),
        gpus=tuple(_advice(name, sm) for name, sm in ([asked] if asked else gpus)),
    )


def _trial_text(probe: str) -> str:
    """List the times of the trial that decides for ``auto``, the fastest first."""
    times = sorted(cached_times(probe).items(), key=lambda item: item[1])
    found = ", ".join(f"{candidate} {time_ms:.1f} ms" for candidate, time_ms in times)
    return found or "none yet: esnet-segment makes it with --backend auto"


def _installed() -> dict[str, str | None]:
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    bindings = {name: version for name in _TENSORRTS if (version := _version(name))}
    if (
        bindings and versions["tensorrt"] is None
    ):  # 8.6 is installed without the distribution tensorrt
        del versions["tensorrt"]
        versions |= bindings
    return versions


def _sm_of_gpu(gpu: NvidiaGpu) -> Sm | None:
    try:
        return sm_of(gpu.compute_capability or gpu.name)
    except InvalidInput:  # NVML does not know it, and our table does not have every GPU
        return None


def _advice(name: str, sm: Sm | None) -> GpuAdvice:
    if sm is None:
        problem = "neither its driver nor our table knows its compute capability"
        return GpuAdvice(f"{name}: {problem}; see developer.nvidia.com/cuda-gpus")
    limits = limits_of(sm)
    bounds = (
        f"TensorRT {limits.tensorrt} at most, Python {limits.python} at most, driver {limits.driver} at most"
        if limits.is_final
        else f"TensorRT up to {limits.tensorrt}, with Python up to {limits.python}"
    )
    parts = [bounds, *(advice_for(sm, precision) for precision in ("fp16", "int8")), limits.note]
    return GpuAdvice(
        support=f"{name} (SM {sm_text(sm)}): {'; '.join(filter(None, parts))}",
        installs=(tensorrt_install(sm), *([_pip("rtx")] if limits.runs_rtx else [])),
    )


def tensorrt_install(sm: Sm | None) -> str:
    """Get the command that installs the newest TensorRT for a GPU."""
    if sm == (8, 7):  # Jetson Orin
        return _INSTALL_JETSON
    if sm is None or not limits_of(sm).is_final:
        return _pip("gpu")
    limits = limits_of(sm)
    if limits.tensorrt.startswith("8.6"):
        return _INSTALL_8_6
    return f"pip install 'tensorrt-cu12=={limits.tensorrt}.*' 'cuda-bindings==12.9.*'"


def _checks(*, has_gpu: bool, sm: Sm | None) -> Iterator[Check]:
    yield _import_check(_FRAMES, "cv2", fix="pip install opencv-python-headless")
    for name in ("openvino", "onnxruntime"):
        yield _import_check(f"run on CPU: {name}", name, fix=_pip("cpu"))
    yield _torch_check()
    for name in ("onnx", "safetensors"):
        yield _import_check(f"export: {name}", name, fix=_pip("export"))
    if has_gpu:
        fix = tensorrt_install(sm)
        yield _import_check("build engines: tensorrt", *KINDS[TENSORRT][0], fix=fix)
        fix = "pip install cuda-bindings" if sm is None or sm >= (7, 5) else _CUDA_12_BINDINGS
        yield _import_check(_COPY, "cuda.bindings", "pycuda", fix=fix)
    if sm is None or limits_of(sm).runs_rtx:
        yield _import_check("build engines: tensorrt-rtx", *KINDS[TENSORRT_RTX][0], fix=_pip("rtx"))


def _torch_check() -> Check:
    """Find torch without importing it, which takes longer than all other checks."""
    name, fix = "export: torch", _pip("export")
    spec = importlib.util.find_spec("torch")
    if spec is None:
        return Check(name=name, is_ok=False, detail="not installed", fix=fix)
    if spec.origin is None:  # a folder without files
        return Check(name=name, is_ok=False, detail=_EMPTY, fix=f"{_uninstall('torch')} && {fix}")
    return Check(name=name, is_ok=True, detail=_version("torch") or "unknown version")


def _import_check(name: str, module: str, *others: str, fix: str) -> Check:
    """Import a library, by its first import name that exists, so that a broken installation is found."""
    try:
        library = importlib.import_module(module)
    except Exception as error:  # a library that fails to load may raise anything
        names = (module, module.partition(".")[0])
        is_missing = isinstance(error, ModuleNotFoundError) and error.name in names
        if is_missing and others:
            return _import_check(name, *others, fix=fix)
        detail = "not installed" if is_missing else f"broken: {error}".partition("\n")[0]
        return Check(name=name, is_ok=False, detail=detail, fix=fix)
    # PyCUDA has no __version__.
    version = getattr(library, "__version__", None) or getattr(library, "VERSION_TEXT", None)
    if version is None:  # Python imports an empty folder without an error
        fix = f"{_uninstall(*_CONFLICTS.get(module, (module,)))} && {fix}"
        return Check(name=name, is_ok=False, detail=_EMPTY, fix=fix)
    return Check(name=name, is_ok=True, detail=str(version).partition("-")[0])


def _listing_warnings(problem: str | None, *, is_found: bool) -> Iterator[str]:
    """Find what hides the GPUs, or details of them."""
    install = "" if has_nvml() else "pip install nvidia-ml-py"
    if problem is not None:
        container = "in a container, run it with --gpus all"
        fixes = "; ".join(filter(None, (install, container)))
        yield f"an NVIDIA driver is loaded, but no GPU is listed ({problem}): {fixes}"
    elif is_found and install:
        yield f"clocks and temperatures of the GPU are unknown without nvidia-ml-py: {install}"


def _conflict_warnings(*, has_gpu: bool, sm: Sm | None) -> Iterator[str]:
    """Find distributions that overwrite each other's files."""
    onnxruntime = _pip("gpu" if has_gpu else "cpu")
    if sm is not None and sm < (7, 5):  # older than Turing
        onnxruntime = f"pip install onnxruntime-gpu=={_LAST_ONNXRUNTIME_GPU}"
    installs = {"onnxruntime": onnxruntime, "cv2": "pip install opencv-python"}
    for module, names in _CONFLICTS.items():
        if all(map(_version, names)):
            yield (
                f"{' and '.join(names)} are both installed and overwrite each other: "
                f"{_uninstall(*names)} && {installs[module]}"
            )


def _driver_warnings(drivers: set[str]) -> Iterator[str]:
    """Find each TensorRT that needs a newer driver."""
    for distribution in (*_TENSORRTS, *_TENSORRT_RTXS):
        version = _version(distribution)
        if version is None:
            continue
        cuda = 13 if "cu13" in distribution else 12
        lowest = _LOWEST_DRIVER[cuda]
        if distribution in _TENSORRTS and version_numbers(version) >= (11,):
            lowest = max(lowest, _LOWEST_DRIVER_TENSORRT_11)
        other = f", or pip install {distribution.replace('cu13-bindings', 'cu12')}"
        for driver in sorted(drivers):
            if () < version_numbers(driver) < (lowest,):
                yield (
                    f"driver {driver} is too old for {distribution} {version}, built for CUDA {cuda}: "
                    f"install driver R{lowest} or newer{other if cuda == 13 else ''}"
                )


def _support_warnings(sms: set[Sm]) -> Iterator[str]:
    """Find installed libraries that no longer support a GPU."""
    for sm in sorted(sms):
        limits = limits_of(sm)
        rtx = next((name for name in _TENSORRT_RTXS if _version(name)), None)
        if rtx and not limits.runs_rtx:
            yield (
                f"{rtx} {_version(rtx)} does not run on SM {sm_text(sm)}, TensorRT does: "
                f"{tensorrt_install(sm)}"
            )
        newest = {name: limits.tensorrt for name in _TENSORRTS}
        newest["onnxruntime-gpu"] = _LAST_ONNXRUNTIME_GPU
        for distribution, bound in newest.items() if limits.is_final else ():
            version = _version(distribution)
            if version is None or version_numbers(version)[:2] <= version_numbers(bound)[:2]:
                continue
            is_tensorrt = distribution in _TENSORRTS
            fix = tensorrt_install(sm) if is_tensorrt else f"pip install {distribution}=={bound}"
            yield (
                f"{distribution} {version} does not run on SM {sm_text(sm)}, the last version that does is "
                f"{bound}: {_uninstall(distribution)} && {fix}"
            )


def _pip(extra: str) -> str:
    return f"pip install 'esnet-deploy[{extra}]'"


def _uninstall(*distributions: str) -> str:
    return f"pip uninstall -y {' '.join(distributions)}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
