"""The table of backends, and ``open_backend``."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import SUFFIXES, read_record
from runtime.backends.base import Backend
from runtime.errors import BackendUnavailable, InvalidInput
from runtime.tensorrt_api import KINDS, TENSORRT


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """Location and requirements of a backend."""

    implementation: str
    """``module:Class`` in ``runtime.backends``; the constructor is that of ``Backend``."""
    modules: tuple[str, ...]
    """Import names of its library, one of which is enough; none if it needs no library."""
    extra: str | None
    """Extra of this distribution that installs the library."""
    by_name_only: bool = False
    """True if it is never chosen automatically: the installed library does not prove that it can run."""
    opens: str = "onnx"
    """Artefacts that it runs: ``onnx``, ``engine`` or ``any``."""


# The automatic choice takes the first that is installed: fastest first, as measured; see benchmarks/results.
BACKENDS: dict[str, BackendEntry] = {
    "openvino": BackendEntry("openvino:OpenVinoBackend", ("openvino",), "cpu"),
    "onnxruntime": BackendEntry("onnxruntime:OnnxRuntimeBackend", ("onnxruntime",), "cpu"),
    "null": BackendEntry("null:NullBackend", (), None, opens="any"),
    "onnxruntime-cuda": BackendEntry(
        "onnxruntime_cuda:OnnxRuntimeCudaBackend", ("onnxruntime",), "gpu", by_name_only=True
    ),
    **{
        kind: BackendEntry("tensorrt:TensorRtBackend", modules, extra, opens="engine")
        for kind, (modules, extra) in KINDS.items()
    },
}


def installed_backends() -> tuple[str, ...]:
    """List the installed backends for ONNX files that may be chosen automatically, fastest first."""
    return tuple(
        name
        for name, entry in BACKENDS.items()
        if entry.opens == "onnx" and not entry.by_name_only and any(map(_has, entry.modules))
    )


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
        precision: As for ``Backend``.
        threads: As for ``Backend``.
        timing: True to measure stages on a GPU; see ``SlotRing.stage_times_ms``.

    Raises:
        ModelFileError: The file is missing, damaged, or has no card.
        EngineMismatch: The engine is for another TensorRT or GPU, or was changed.
        InvalidInput: Unknown backend, one for other artefacts, a precision that it cannot run, or fewer than
            one thread.
        BackendUnavailable: Its library is not installed, or does not load.

    Example:
        >>> with open_backend("model.onnx") as backend:
        ...     (labels,) = backend.infer(frame[None])
        >>> labels.shape, labels.dtype
        ((1, 64, 128), dtype('uint8'))
    """
    path = Path(path)
    card, builder = identify_artefact(path)
    name = name or builder or next(iter(installed_backends()), None)
    if name is None:
        raise BackendUnavailable(
            "no backend is installed", hint="pip install 'esnet-deploy[cpu]', then: esnet-doctor"
        )
    if name not in BACKENDS:
        raise InvalidInput(f"unknown backend {name!r}", hint=f"backends: {', '.join(BACKENDS)}")
    entry = BACKENDS[name]
    _check_kind(path, name, builder)
    if threads is not None and threads < 1:
        raise InvalidInput(f"threads must be at least 1, got {threads}")
    if entry.modules and not any(map(_has, entry.modules)):
        raise BackendUnavailable(
            f"backend {name!r} needs {entry.modules[0]}, which is not installed",
            hint=_tensorrt_install(path)
            if name == TENSORRT
            else f"pip install 'esnet-deploy[{entry.extra}]'",
        )
    module, _, attribute = entry.implementation.partition(":")
    try:
        opener = getattr(importlib.import_module(f"runtime.backends.{module}"), attribute)
    except ImportError as error:
        raise BackendUnavailable(
            f"{' or '.join(entry.modules)} is installed but does not load: {error}",
            hint="esnet-doctor shows what is broken; --backend chooses another",
        ) from error
    options = {"timing": timing} if entry.extra in ("gpu", "rtx") else {}
    backend: Backend = opener(path, card, precision=precision, threads=threads, **options)
    return backend


def identify_artefact(path: Path) -> tuple[ModelCard, str | None]:
    """Read an artefact's card, and for an engine the name of the backend that runs it, else ``None``.

    Raises:
        ModelFileError: The file is missing, damaged, or has no card.
    """
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
        hint="omit --backend; other backends take the ONNX file it was built from",
    )


def _tensorrt_install(path: Path) -> str:
    """Get the command that installs a TensorRT for the oldest GPU that an engine is built for."""
    from runtime.machine.doctor import tensorrt_install  # not needed to open a model
    from runtime.machine.gpus import sm_of

    texts = read_record(path).target.get("sms", ())
    sms = sorted(sm_of(str(text).removesuffix("+")) for text in texts)
    return tensorrt_install(sms[0] if sms else None)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
