"""The table of backends, and how an artefact is opened."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import SUFFIXES, read_record
from runtime.backends.base import Backend
from runtime.errors import BackendUnavailable, InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendEntry:
    """Where a backend lives and what it needs."""

    target: str
    """``module:Class``; the class takes (path, card, precision=, threads=)."""
    module: str | None
    """Library it imports; ``None`` when it needs none."""
    extra: str | None
    """Extra of this distribution that installs the library."""
    speed: int
    """Rank among the installed ones, fastest first, as measured; see benchmarks/results."""
    by_name_only: bool = False
    """Whether it runs only when it is asked for: its library alone does not tell that it can."""
    opens: str = "onnx"
    """``onnx`` or ``engine``: which kind of artefact it runs; ``any`` for both."""


BACKENDS: dict[str, BackendEntry] = {
    "openvino": BackendEntry(
        target="runtime.backends.openvino:OpenVinoBackend",
        module="openvino",
        extra="cpu",
        speed=1,
    ),
    "onnxruntime": BackendEntry(
        target="runtime.backends.onnxruntime:OnnxRuntimeBackend",
        module="onnxruntime",
        extra="cpu",
        speed=2,
    ),
    "null": BackendEntry(
        target="runtime.backends.null:NullBackend",
        module=None,
        extra=None,
        speed=99,
        opens="any",
    ),
    "onnxruntime-cuda": BackendEntry(
        target="runtime.backends.onnxruntime_cuda:OnnxRuntimeCudaBackend",
        module="onnxruntime",
        extra="gpu",
        speed=3,
        by_name_only=True,
    ),
    "tensorrt": BackendEntry(
        target="runtime.backends.tensorrt:TensorRtBackend",
        module="tensorrt",
        extra="gpu",
        speed=1,
        opens="engine",
    ),
    "tensorrt-rtx": BackendEntry(
        target="runtime.backends.tensorrt:TensorRtBackend",
        module="tensorrt_rtx",
        extra="rtx",
        speed=1,
        opens="engine",
    ),
}


def installed_backends() -> tuple[str, ...]:
    """List the backends for ONNX files that may be chosen by themselves, fastest first."""
    names = [
        name
        for name, entry in BACKENDS.items()
        if entry.opens == "onnx" and not entry.by_name_only and entry.module and _has(entry.module)
    ]
    return tuple(sorted(names, key=lambda name: BACKENDS[name].speed))


def open_backend(
    path: Path | str,
    name: str | None = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
    timing: bool = False,
) -> Backend:
    """Open an artefact.

    Args:
        path: An ONNX file of this toolkit, or an engine.
        name: Key of ``BACKENDS``; ``None`` takes the fastest that is installed, for an engine the one that
            built it.
        precision: Arithmetic to run at; ``None`` takes the card's.
        threads: CPU threads; ``None`` leaves it to the library.
        timing: Whether a GPU is to measure its stages; see ``SlotRing.stage_times_ms``.

    Raises:
        ModelFileError: The file is missing, damaged, or without a card.
        EngineMismatch: The engine is for another TensorRT or GPU, or was changed.
        InvalidInput: No such backend, one for other artefacts, a precision that it cannot run, or fewer than
            one thread.
        BackendUnavailable: Its library is not installed, or does not load.
    """
    card, builder = identify_artefact(Path(path))
    name = name or builder or _fastest()
    if name not in BACKENDS:
        raise InvalidInput(f"unknown backend {name!r}", hint=f"backends: {', '.join(BACKENDS)}")
    _check_kind(Path(path), name, builder)
    if threads is not None and threads < 1:
        raise InvalidInput(f"threads must be at least 1, got {threads}")
    entry = BACKENDS[name]
    if entry.module and not _has(entry.module):
        raise BackendUnavailable(
            f"backend {name!r} needs {entry.module}, which is not installed",
            hint=f"pip install 'esnet-deploy[{entry.extra}]'",
        )
    module, _, attribute = entry.target.partition(":")
    try:
        opener = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise BackendUnavailable(
            f"{entry.module} is installed but does not load: {error}",
            hint="esnet-doctor tells more; --backend takes another",
        ) from error
    has_ring = entry.extra in ("gpu", "rtx")
    options = {"timing": timing} if has_ring else {}
    backend: Backend = opener(Path(path), card, precision=precision, threads=threads, **options)
    return backend


def identify_artefact(path: Path) -> tuple[ModelCard, str | None]:
    """Read an artefact's card, and for an engine the name of the backend that runs it, else ``None``."""
    if path.suffix.lower() not in SUFFIXES:
        return ModelCard.from_file(path), None
    record = read_record(path)
    return record.card, str(record.tensorrt.get("kind"))


def _check_kind(path: Path, name: str, builder: str | None) -> None:
    """Refuse a backend that does not run this kind of artefact."""
    opens = BACKENDS[name].opens
    if opens == "any" or (builder is None and opens == "onnx") or name == builder:
        return
    if builder is None:
        raise InvalidInput(
            f"backend {name!r} runs engines, {path} is an ONNX file",
            hint=f"esnet-export build-engine {path} --fp16 --tensorrt {name}",
        )
    raise InvalidInput(
        f"backend {name!r} does not run {path}, an engine of {builder}",
        hint="leave --backend away; other backends take the ONNX file it was built from",
    )


def _fastest() -> str:
    names = installed_backends()
    if not names:
        raise BackendUnavailable(
            "no backend is installed", hint="pip install 'esnet-deploy[cpu]', then: esnet-doctor"
        )
    return names[0]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
