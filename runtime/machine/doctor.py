"""What is installed, which backends can run here, and the pip line for what is missing."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from types import MappingProxyType

from runtime.errors import InvalidInput
from runtime.machine.gpus import Sm, advice_for, limits_of, sm_of, sm_text
from runtime.machine.machine import NvidiaCard, cpu_flags, cpu_name, nvidia_cards
from runtime.tensorrt_api import KINDS, TENSORRT, TENSORRT_RTX

DISTRIBUTION = "esnet-deploy"

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
    "torch",
    "onnx",
    "safetensors",
)
# Distributions that fill the same import folder: the second spoils the first, and removing one empties it.
_TWINS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "cv2": ("opencv-python", "opencv-python-headless"),
}
# What a TensorRT is installed as. 8.6 and those with cu12 in their name need CUDA 12.
_TENSORRTS = ("tensorrt-bindings", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings")
_TENSORRT_RTXS = ("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings")
# CUDA -> lowest driver branch; TensorRT 11 on CUDA 12 wants R535, says its prerequisites page. Source:
# docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_LOWEST_DRIVER: Mapping[int, int] = MappingProxyType({12: 525, 13: 580})
_LOWEST_DRIVER_TENSORRT_11 = 535
_TURING: Sm = (7, 5)
_ORIN: Sm = (8, 7)
# The pins of requirements-gtx10xx.txt. PyPI's own tensorrt_libs is a placeholder; cuDNN without a version
# would be 9, which has no libcudnn.so.8.
_INSTALL_8_6 = (
    "python3.11 -m venv .venv-gtx10xx && . .venv-gtx10xx/bin/activate && "
    "pip install --extra-index-url https://pypi.nvidia.com tensorrt_libs==8.6.1 tensorrt_bindings==8.6.1 "
    "nvidia-cudnn-cu12==8.9.7.29 'nvidia-cublas-cu12==12.1.*' 'nvidia-cuda-runtime-cu12==12.1.*' "
    "'cuda-bindings==12.9.*'"
)
_INSTALL_JETSON = "part of JetPack; python3 -m venv --system-site-packages .venv sees it"
# The last with code for Pascal and Volta in its PyPI wheel.
_LAST_ONNXRUNTIME_GPU = "1.26.0"
_FRAMES = "read and write frames: cv2"
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that can be done here, or not."""

    name: str
    """What it is."""
    is_ok: bool
    """Whether it works here."""
    detail: str
    """Version, or what is wrong."""
    fix: str = ""
    """Command that mends it; empty when it works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuAdvice:
    """What a GPU can be used with."""

    support: str
    """What still supports it, and what to avoid on it."""
    installs: tuple[str, ...]
    """Commands that bring a TensorRT for it; any one will do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """The doctor's findings."""

    machine: dict[str, str]
    """Python, system, CPU with its instruction sets, GPUs."""
    installed: dict[str, str | None]
    """Distribution to version; ``None`` where it is missing."""
    checks: tuple[Check, ...]
    """What can be done here."""
    warnings: tuple[str, ...]
    """Installations that break each other, or do not fit the GPU or its driver."""
    gpus: tuple[GpuAdvice, ...] = ()
    """Advice for each GPU, or for the one that was asked about."""

    @property
    def can_run(self) -> bool:
        """Whether a model can run here: OpenCV loads, and any backend does."""
        working = {check.name for check in self.checks if check.is_ok}
        return _FRAMES in working and any(name.startswith("run on") for name in working)

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return asdict(self)


def diagnose(gpu: str | None = None) -> Diagnosis:
    """Look at this machine and this environment.

    Args:
        gpu: A card to give advice for, ``GTX 1080 Ti``; ``None`` takes those of this machine.

    Raises:
        InvalidInput: An unknown card.
    """
    installed = {name: _version(name) for name in _DISTRIBUTIONS}
    asked = None if gpu is None else (gpu, sm_of(gpu))
    cards = nvidia_cards()
    gpus = [(card.name, _sm_of_card(card)) for card in cards]
    sm = gpus[0][1] if gpus else None
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu features": ", ".join(flag for flag in _ISA if flag in cpu_flags()) or "unknown",
        "gpu": "; ".join(f"{card.name}, {card.driver}, {card.memory}" for card in cards)
        or "none (no NVIDIA driver answers)",
        "esnet-deploy": _version(DISTRIBUTION) or "run from its source folder",
    }
    return Diagnosis(
        machine=machine,
        installed=installed,
        checks=tuple(_checks(has_gpu=bool(cards), sm=sm)),
        warnings=(
            *_twin_warnings(has_gpu=bool(cards), sm=sm),
            *_driver_warnings({card.driver for card in cards}),
            *_age_warnings({sm for _, sm in gpus if sm is not None}),
        ),
        gpus=tuple(_advice(name, sm) for name, sm in ([asked] if asked else gpus)),
    )


def _sm_of_card(card: NvidiaCard) -> Sm | None:
    try:
        return sm_of(card.compute_capability or card.name)
    except InvalidInput:  # an old driver does not tell, and our table does not have every card
        return None


def _advice(name: str, sm: Sm | None) -> GpuAdvice:
    if sm is None:
        unknown = "neither its driver nor our table knows its compute capability; nvidia.com does"
        return GpuAdvice(support=f"{name}: {unknown}", installs=())
    limits = limits_of(sm)
    bounds = (
        f"TensorRT {limits.tensorrt} at most, Python {limits.python} at most, driver {limits.driver} at most"
        if limits.is_final
        else f"TensorRT up to {limits.tensorrt}, with Python up to {limits.python}"
    )
    parts = [bounds, *(advice_for(sm, precision) for precision in ("fp16", "int8")), limits.note]
    installs = [_tensorrt_install(sm)] + ([_pip("rtx")] if limits.runs_rtx else [])
    return GpuAdvice(
        support=f"{name} (SM {sm_text(sm)}): {'; '.join(filter(None, parts))}",
        installs=tuple(installs),
    )


def _tensorrt_install(sm: Sm | None) -> str:
    """Say how to get the newest TensorRT that supports a GPU."""
    if sm == _ORIN:
        return _INSTALL_JETSON
    if sm is None or not limits_of(sm).is_final:
        return _pip("gpu")
    limits = limits_of(sm)
    if limits.tensorrt.startswith("8.6"):
        return _INSTALL_8_6
    return f"pip install 'tensorrt-cu12=={limits.tensorrt}.*' 'cuda-bindings==12.9.*'"


def _checks(*, has_gpu: bool, sm: Sm | None) -> list[Check]:
    checks = [
        _import_check(_FRAMES, "cv2", fix="pip install opencv-python-headless"),
        _import_check("run on CPU: openvino", "openvino", fix=_pip("cpu")),
        _import_check("run on CPU: onnxruntime", "onnxruntime", fix=_pip("cpu")),
        _import_check("export: torch", "torch", fix=_pip("export")),
        _import_check("export: onnx", "onnx", fix=_pip("export")),
        _import_check("export: safetensors", "safetensors", fix=_pip("export")),
    ]
    if has_gpu:
        fix = _tensorrt_install(sm)
        checks.append(_import_check("build engines: tensorrt", *KINDS[TENSORRT][0], fix=fix))
    rtx = _import_check("build engines: tensorrt-rtx", *KINDS[TENSORRT_RTX][0], fix=_pip("rtx"))
    return [*checks, rtx]


def _import_check(name: str, module: str, *others: str, fix: str) -> Check:
    """Import a library for real: a broken installation must not look healthy.

    Args:
        name: What it is for.
        module: Its module.
        *others: Where else it may be found, if not there.
        fix: Command that brings it.
    """
    try:
        library = importlib.import_module(module)
    except Exception as error:  # a library that fails to load may raise anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module
        if is_missing and others:
            return _import_check(name, *others, fix=fix)
        detail = "not installed" if is_missing else f"broken: {error}".partition("\n")[0]
        return Check(name=name, is_ok=False, detail=detail, fix=fix)
    version = getattr(library, "__version__", None)
    if version is None:  # an empty folder imports as well
        fix = f"{_uninstall(*_TWINS.get(module, (module,)))} && {fix}"
        return Check(name=name, is_ok=False, detail="broken: an empty folder is left", fix=fix)
    return Check(name=name, is_ok=True, detail=str(version).partition("-")[0])


def _twin_warnings(*, has_gpu: bool, sm: Sm | None) -> Iterator[str]:
    onnxruntime = _pip("gpu" if has_gpu else "cpu")
    if sm is not None and sm < _TURING:
        onnxruntime = f"pip install onnxruntime-gpu=={_LAST_ONNXRUNTIME_GPU}"
    installs = {"onnxruntime": onnxruntime, "cv2": "pip install opencv-python"}
    for module, twins in _TWINS.items():
        if all(map(_version, twins)):
            yield (
                f"{' and '.join(twins)} are both installed and overwrite each other: "
                f"{_uninstall(*twins)} && {installs[module]}"
            )


def _driver_warnings(drivers: set[str]) -> Iterator[str]:
    """Find each TensorRT that the driver is too old for."""
    for distribution in (*_TENSORRTS, *_TENSORRT_RTXS):
        version = _version(distribution)
        if version is None:
            continue
        cuda = 13 if "cu13" in distribution else 12
        lowest = _LOWEST_DRIVER[cuda]
        if distribution in _TENSORRTS and _numbers(version) >= (11,):
            lowest = max(lowest, _LOWEST_DRIVER_TENSORRT_11)
        other = f", or pip install {distribution.replace('cu13-bindings', 'cu12')}"
        for driver in sorted(drivers):
            if () < _numbers(driver) < (lowest,):
                yield (
                    f"driver {driver} is too old for {distribution} {version}, built for CUDA {cuda}: "
                    f"install driver R{lowest} or newer{other if cuda == 13 else ''}"
                )


def _age_warnings(sms: set[Sm]) -> Iterator[str]:
    """Find what is installed and has left a GPU behind."""
    for sm in sorted(sms):
        limits = limits_of(sm)
        newest = {name: limits.tensorrt for name in _TENSORRTS}
        newest["onnxruntime-gpu"] = _LAST_ONNXRUNTIME_GPU
        for distribution, bound in newest.items() if limits.is_final else ():
            version = _version(distribution)
            if version is None or _numbers(version)[:2] <= _numbers(bound)[:2]:
                continue
            is_tensorrt = distribution in _TENSORRTS
            fix = _tensorrt_install(sm) if is_tensorrt else f"pip install {distribution}=={bound}"
            yield (
                f"{distribution} {version} does not run on SM {sm_text(sm)}, {bound} is the last that does: "
                f"{_uninstall(distribution)} && {fix}"
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _pip(extra: str) -> str:
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _uninstall(*distributions: str) -> str:
    return f"pip uninstall -y {' '.join(distributions)}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
