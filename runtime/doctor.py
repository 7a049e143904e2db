"""What is installed, which backends can run here, and the pip line for what is missing."""

from __future__ import annotations

import importlib
import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from runtime.errors import InvalidInput
from runtime.machine import cpu_flags, cpu_name, nvidia_gpus
from runtime.targets import gpus_at_hand, sm_of, support_text

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
class Diagnosis:
    """The doctor's findings."""

    machine: dict[str, str]
    """Python, system, CPU with its instruction sets, GPUs."""
    installed: dict[str, str | None]
    """Distribution to version; ``None`` where it is missing."""
    checks: tuple[Check, ...]
    """What can be done here."""
    warnings: tuple[str, ...]
    """Installations that break each other."""
    gpus: tuple[str, ...] = ()
    """For each GPU, what still supports it, what to avoid, and what to install."""

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
    gpus = nvidia_gpus()
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu features": ", ".join(flag for flag in _ISA if flag in cpu_flags()) or "unknown",
        "gpu": "; ".join(gpus) or "none (no NVIDIA driver answers)",
        "esnet-deploy": _version(DISTRIBUTION) or "run from its source folder",
    }
    return Diagnosis(
        machine=machine,
        installed=installed,
        checks=tuple(_checks(has_gpu=bool(gpus))),
        warnings=tuple(_warnings(has_gpu=bool(gpus))),
        gpus=_support(gpu),
    )


def _support(asked: str | None) -> tuple[str, ...]:
    if asked is not None:
        return (support_text(asked, sm_of(asked)),)
    try:
        return tuple(support_text(name, sm) for name, sm in gpus_at_hand())
    except InvalidInput as error:
        return (f"{error}: neither the driver nor our table knows its compute capability",)


def _checks(*, has_gpu: bool) -> list[Check]:
    checks = [
        _import_check(_FRAMES, "cv2", fix="pip install opencv-python-headless"),
        _import_check("run on CPU: openvino", "openvino", fix=_pip("cpu")),
        _import_check("run on CPU: onnxruntime", "onnxruntime", fix=_pip("cpu")),
        _import_check("export: torch", "torch", fix=_pip("export")),
        _import_check("export: onnx", "onnx", fix=_pip("export")),
        _import_check("export: safetensors", "safetensors", fix=_pip("export")),
    ]
    if has_gpu:
        checks.append(_import_check("build engines: tensorrt", "tensorrt", fix=_pip("gpu")))
    checks.append(_import_check("build engines: tensorrt-rtx", "tensorrt_rtx", fix=_pip("rtx")))
    return checks


def _import_check(name: str, module: str, *, fix: str) -> Check:
    """Import a library for real: a broken installation must not look healthy."""
    try:
        library = importlib.import_module(module)
    except Exception as error:  # a library that fails to load may raise anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module
        detail = "not installed" if is_missing else f"broken: {error}".partition("\n")[0]
        return Check(name=name, is_ok=False, detail=detail, fix=fix)
    version = getattr(library, "__version__", None)
    if version is None:  # an empty folder imports as well
        fix = f"{_uninstall(*_TWINS.get(module, (module,)))} && {fix}"
        return Check(name=name, is_ok=False, detail="broken: an empty folder is left", fix=fix)
    return Check(name=name, is_ok=True, detail=str(version).partition("-")[0])


def _warnings(*, has_gpu: bool) -> list[str]:
    installs = {
        "onnxruntime": _pip("gpu" if has_gpu else "cpu"),
        "cv2": "pip install opencv-python",
    }
    return [
        f"{' and '.join(twins)} are both installed and overwrite each other: "
        f"{_uninstall(*twins)} && {installs[module]}"
        for module, twins in _TWINS.items()
        if all(map(_version, twins))
    ]


def _pip(extra: str) -> str:
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _uninstall(*distributions: str) -> str:
    return f"pip uninstall -y {' '.join(distributions)}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
