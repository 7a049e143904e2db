"""What is installed, which backends can run here, and the pip line for what is missing."""

from __future__ import annotations

import importlib
import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from runtime.machine import cpu_flags, cpu_name, nvidia_gpus

DISTRIBUTION = "esnet-deploy"

# Distribution -> the extra that brings it; in the order shown.
_DISTRIBUTIONS = {
    "numpy": None,
    "opencv-python": None,
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "openvino": "cpu",
    "tensorrt": "gpu",
    "tensorrt-rtx": "rtx",
    "cuda-bindings": "gpu",
    "pycuda": "pycuda",
    "torch": "export",
    "onnx": "export",
    "safetensors": "export",
}
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

    @property
    def can_run(self) -> bool:
        """Whether any backend runs here."""
        return any(check.is_ok for check in self.checks if check.name.startswith("run on"))

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine and this environment."""
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
        warnings=tuple(_warnings(installed, has_gpu=bool(gpus))),
    )


def _checks(*, has_gpu: bool) -> list[Check]:
    checks = [
        _import_check("run on CPU: openvino", "openvino", "cpu"),
        _import_check("run on CPU: onnxruntime", "onnxruntime", "cpu", needs="InferenceSession"),
        _import_check("export: torch", "torch", "export"),
        _import_check("export: onnx", "onnx", "export"),
        _import_check("export: safetensors", "safetensors", "export"),
    ]
    if has_gpu:
        checks.append(_import_check("build engines: tensorrt", "tensorrt", "gpu"))
    return checks


def _import_check(name: str, module: str, extra: str, *, needs: str | None = None) -> Check:
    """Import a library for real: a broken installation must not look healthy."""
    fix = f"pip install '{DISTRIBUTION}[{extra}]'"
    try:
        library = importlib.import_module(module)
    except ModuleNotFoundError:
        return Check(name=name, is_ok=False, detail="not installed", fix=fix)
    except (
        Exception
    ) as error:  # a library that fails to load may raise anything; the doctor reports it
        return Check(
            name=name, is_ok=False, detail=f"broken: {str(error).splitlines()[0]}", fix=fix
        )
    if needs is not None and not hasattr(library, needs):
        return Check(
            name=name,
            is_ok=False,
            detail=f"broken: no {needs}, the remains of two installations",
            fix=f"pip uninstall -y onnxruntime onnxruntime-gpu && {fix}",
        )
    return Check(name=name, is_ok=True, detail=str(getattr(library, "__version__", "")))


def _warnings(installed: dict[str, str | None], *, has_gpu: bool) -> list[str]:
    warnings = []
    if installed["onnxruntime"] and installed["onnxruntime-gpu"]:
        keep = "gpu" if has_gpu else "cpu"
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: pip uninstall -y "
            f"onnxruntime onnxruntime-gpu && pip install '{DISTRIBUTION}[{keep}]'"
        )
    if _version("opencv-python") and _version("opencv-python-headless"):
        warnings.append(
            "opencv-python and opencv-python-headless are both installed and overwrite each other: "
            "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python"
        )
    return warnings


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
