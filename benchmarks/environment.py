"""Description of the machine, the software and the command of a measurement."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from runtime.machine.machine import cpu_name, gpu_states, nvidia_gpus, source_revision

_LIBRARIES = (
    *("esnet-deploy", "numpy", "opencv-python", "torch"),
    *("onnxruntime", "onnxruntime-gpu", "openvino"),
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_environment() -> dict[str, str]:
    """Describe machine, load, libraries, source revision, date and command, in display order."""
    return {
        "cpu": cpu_name(),
        "gpu": "; ".join(map(str, nvidia_gpus())) or "none",
        "gpu before": describe_gpu_state(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": "{:.2f} {:.2f} {:.2f} (1, 5, 15 minutes, before the run)".format(*os.getloadavg()),
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.exists() else "not exposed",
        "python": platform.python_version(),
        "libraries": ", ".join(filter(None, map(_version, _LIBRARIES))),
        "revision": source_revision(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def describe_gpu_state() -> str:
    """Describe clocks, temperature, power and throttle reasons of each NVIDIA GPU, or ``none``."""
    return "; ".join(gpu_states()) or "none"


def _version(library: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return f"{library} {metadata.version(library)}"
    return ""
