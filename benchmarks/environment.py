"""Where and with what a measurement was taken: without it, a number means nothing."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from runtime.machine.machine import cpu_name, nvidia_gpus, nvidia_states

_LIBRARIES = (
    "esnet-deploy",
    "numpy",
    "opencv-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
)


def describe_environment() -> dict[str, str]:
    """Describe machine, load, libraries, source revision, date and command.

    Returns:
        Text by name, in the order shown.
    """
    return {
        "cpu": cpu_name(),
        "gpu": "; ".join(nvidia_gpus()) or "none",
        "gpu before": describe_gpu_state(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": "{:.2f} {:.2f} {:.2f} (1, 5, 15 minutes, before the run)".format(*os.getloadavg()),
        "governor": _first_line_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        or "not exposed",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version}" for name, version in _versions().items()),
        "revision": _git_revision(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def describe_gpu_state() -> str:
    """Read clocks, temperature, power and reasons for throttling of every NVIDIA card; ``none`` without."""
    return "; ".join(nvidia_states()) or "none"


def peak_memory_bytes() -> int:
    """Read the largest resident size this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> str:
    """Name the commit of the source folder, with a mark when files differ from it."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "not a git checkout"
    return result.stdout.strip()


def _first_line_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
