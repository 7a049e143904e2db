"""Trial of this machine: time a small ESNet on every backend and precision, and keep the times.

The probes are the whole network at 128x256 with constant weights, written by ``scripts/probes.py``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import EsnetError
from runtime.files import cache_dir, read_cache, save_cache
from runtime.machine.machine import cpu_flags, cpu_name, nvidia_gpus
from runtime.machine.onednn import MAX_ISA

if TYPE_CHECKING:  # the doctor reads the times without numpy
    from runtime.backends.base import Backend

LIBRARIES = ("openvino", "onnxruntime", "onnxruntime-gpu")
_MAX_MACHINES = 32
_LEAST_ROUNDS, _LEAST_SECONDS = 3, 0.1


class Candidate(NamedTuple):
    """A way to run an artefact."""

    backend: str
    """Key of ``runtime.backend.BACKENDS``."""
    precision: str
    """``fp32``, ``bf16`` or ``int8``."""

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


class Trial(NamedTuple):
    """Result of a trial."""

    times_ms: dict[Candidate, float]
    """Least CPU time of a frame of the probe in one thread, in the order of the candidates."""
    notes: tuple[str, ...] = ()
    """Candidates that failed, and a cache that cannot be written."""


def run_trial(
    probe: str,
    candidates: Sequence[Candidate],
    open_probe: Callable[[Path, Candidate], Backend],
) -> Trial:
    """Read the times of this machine from the cache, or measure them in about 0.4 s.

    Args:
        probe: ``fp32`` or ``int8``.
        candidates: All ways to run it here.
        open_probe: Opens the file of the probe for a candidate, with one thread.
    """
    if times_ms := cached_times(probe):
        return Trial(times_ms)
    path = Path(__file__).with_name(f"probe_{probe}.onnx")
    times_ms, notes = _measure(path, candidates, open_probe)
    # A library that is broken now may be repaired: only complete trials are kept.
    if not notes and (warning := _save(probe, times_ms)):
        notes.append(warning)
    return Trial(times_ms, tuple(notes))


def cached_times(probe: str) -> dict[Candidate, float]:
    """Read the times of an earlier trial in ms; empty without one on this machine with these libraries."""
    try:
        times_ms = {
            Candidate(*name.split()): float(value) for name, value in _read()[_key()][probe].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):  # damaged, or by another version
        return {}
    is_valid = all(math.isfinite(value) and value > 0 for value in times_ms.values())
    return times_ms if is_valid else {}


def cache_path() -> Path:
    """Get the cache file of the trials."""
    return cache_dir() / "trials.json"


def _measure(
    path: Path, candidates: Sequence[Candidate], open_probe: Callable[[Path, Candidate], Backend]
) -> tuple[dict[Candidate, float], list[str]]:
    """Time the candidates in turns; also get a note for each that fails.

    CPU time in one thread hardly depends on the other processes of the machine.
    """
    import numpy as np

    times_ms: dict[Candidate, float] = {}
    notes: list[str] = []
    backends: dict[Candidate, Backend] = {}
    with ExitStack() as stack:
        for candidate in candidates:
            try:
                backend = stack.enter_context(open_probe(path, candidate))
                batch = np.zeros((1, *backend.input.item_shape), backend.input.dtype)
                backend.infer(batch)
            except EsnetError as error:
                notes.append(f"{candidate} does not run here: {error}")
                continue
            backends[candidate], times_ms[candidate] = backend, math.inf
        ends, rounds = time.perf_counter() + _LEAST_SECONDS, 0
        while backends and (rounds < _LEAST_ROUNDS or time.perf_counter() < ends):
            rounds += 1
            for candidate, backend in backends.items():
                started = time.process_time()
                backend.infer(batch)
                elapsed_ms = (time.process_time() - started) * 1e3
                times_ms[candidate] = min(times_ms[candidate], elapsed_ms)
    return times_ms, notes


def _save(probe: str, times_ms: dict[Candidate, float]) -> str | None:
    """Add times to the cache; get a warning if it cannot be written."""
    machines, key = _read(), _key()
    known = machines.pop(key, None)
    times = {str(candidate): value for candidate, value in times_ms.items()}
    entry = {**(known if isinstance(known, dict) else {}), probe: times}
    kept = dict([*machines.items(), (key, entry)][-_MAX_MACHINES:])
    return save_cache(cache_path(), json.dumps(kept, indent=1).encode())


def _read() -> dict[str, Any]:
    try:
        machines = json.loads(read_cache(cache_path()))
    except ValueError:
        return {}
    return machines if isinstance(machines, dict) else {}


def _key() -> str:
    """Identify all that the times depend on."""
    parts = {
        "cpu": cpu_name(),
        "flags": sorted(cpu_flags()),
        MAX_ISA: os.environ.get(MAX_ISA, ""),
        "gpus": [str(gpu) for gpu in nvidia_gpus()],
        "libraries": {name: version_of(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def version_of(distribution: str) -> str | None:
    """Get the version of an installed distribution; ``None`` if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
