"""The table of backends, ``open_backend``, and the choice by measurement."""

from __future__ import annotations

import importlib
import importlib.util
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import SUFFIXES, read_record
from runtime.artefact.onnx_file import check_graph
from runtime.backends.base import Backend
from runtime.errors import BackendUnavailable, InvalidInput
from runtime.machine.gpus import parse_device
from runtime.machine.machine import nvidia_gpus
from runtime.machine.onednn import has_bf16
from runtime.tensorrt_api import KINDS, TENSORRT
from runtime.trials import Candidate, Trial, run_trial, version_of

AUTO = "auto"
"""As a backend or precision: the fastest one, by a trial on this machine."""
_CUDA = "onnxruntime-cuda"
_FOR_CPUS = "for CPUs: esnet-export quantize --scheme cpu"
_LEAST_BF16_AGREEMENT = 0.99
# Closer times of the probe do not tell which backend is faster: the form of the graph decides.
_TIE = 1.10


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
    _CUDA: BackendEntry(
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Backend and precision for an artefact, and the times that decided."""

    backend: str
    """Key of ``BACKENDS``."""
    precision: str | None
    """As for ``open_backend``."""
    times_ms: Mapping[Candidate, float] = field(default_factory=dict)
    """``Trial.times_ms`` of the candidates; empty if there was only one."""
    notes: tuple[str, ...] = ()
    """Skipped backends, and problems of the trial."""

    def as_text(self) -> str:
        """List the candidates with their times, the fastest first."""
        chosen = f"{self.backend} {self.precision or ''}".rstrip()
        if not self.times_ms:
            return f"{chosen}: the only candidate"
        rows = sorted(self.times_ms.items(), key=lambda item: item[1])
        lines = [f"{chosen}: chosen by the CPU time of a small network, one thread"]
        lines += [f"  {name!s:<24}{time_ms:8.2f} ms" for name, time_ms in rows]
        return "\n".join(lines)


def open_backend(
    path: Path | str,
    name: str | None = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
    device: str | int | None = None,
    timing: bool = False,
    allow_mismatch: bool = False,
) -> Backend:
    """Open an artefact.

    Args:
        path: An ONNX file of this toolkit, or an engine.
        name: Key of ``BACKENDS``. ``None`` takes the first of ``installed_backends`` that the card does not
            exclude, for an engine the one that built it. ``auto``: see ``choose_backend``.
        precision: As for ``Backend``, or ``auto``.
        threads: As for ``Backend``.
        device: The GPU, ``cuda:1`` or 1, in CUDA's order. An ONNX file runs in ``onnxruntime-cuda`` then.
            ``None`` takes the first for a backend that runs on a GPU.
        timing: True to measure stages on a GPU; see ``SlotRing.stage_times_ms``.
        allow_mismatch: True to open it with the named backend even if the card says that its labels differ.

    Raises:
        ModelFileError: The file is missing, damaged, or has no card.
        EngineMismatch: The engine is for another TensorRT or GPU, or was changed.
        InvalidInput: Unknown backend, one for other artefacts, one whose labels differ by the card, a
            precision or a device that it cannot run on, or fewer than one thread.
        BackendUnavailable: Its library is not installed, or does not load.

    Example:
        >>> with open_backend("model.onnx") as backend:
        ...     (labels,) = backend.infer(frame[None])
        >>> labels.shape, labels.dtype
        ((1, 64, 128), dtype('uint8'))
    """
    path = Path(path)
    if AUTO in (name, precision):
        choice = choose_backend(path, name or AUTO, precision, device)
        name, precision = choice.backend, choice.precision
    card, builder = identify_artefact(path)
    name = name or builder or (_first_match(path, card) if device is None else _CUDA)
    if name not in BACKENDS:
        raise InvalidInput(f"unknown backend {name!r}", hint=f"backends: {', '.join(BACKENDS)}")
    entry = BACKENDS[name]
    _check_kind(path, name, builder)
    if not allow_mismatch and not card.matches(name):
        raise _mismatch(path, card, name)
    runs_on_gpu = entry.extra in ("gpu", "rtx")
    if device is not None and not runs_on_gpu:
        raise InvalidInput(
            f"backend {name!r} does not run on a GPU, device {device!r} was given",
            hint=f"omit the device, or use {_CUDA} or an engine",
        )
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
    if builder is None and name != "null":
        check_graph(path)
    options = {"timing": timing, "device": parse_device(device or 0)} if runs_on_gpu else {}
    backend: Backend = opener(path, card, precision=precision, threads=threads, **options)
    return backend


def choose_backend(
    path: Path | str,
    name: str = AUTO,
    precision: str | None = AUTO,
    device: str | int | None = None,
) -> Choice:
    """Choose the fastest backend and precision for an artefact by a trial, which is cached.

    A backend whose labels differ by the card is never chosen, and bf16 only if the card says that its labels
    agree. A GPU that runs ONNX Runtime is always preferred.

    Args:
        path: As for ``open_backend``.
        name: ``auto``, or a key of ``BACKENDS`` to choose only the precision.
        precision: ``auto``, or a precision to choose only the backend; ``None`` is that of the card.
        device: As for ``open_backend``; with one, there is no trial.

    Raises:
        ModelFileError: The file is missing, damaged, or has no card.
        BackendUnavailable: No backend is installed.
        InvalidInput: The card excludes every installed backend.
    """
    path = Path(path)
    card, builder = identify_artefact(path)
    asked = None if precision == AUTO else precision
    if builder is not None or device is not None:
        return Choice(backend=(builder or _CUDA) if name == AUTO else name, precision=asked)
    probe = "int8" if card.precision == "int8" else "fp32"
    candidates = tuple(_candidates(probe))
    allowed = [
        candidate
        for candidate in candidates
        if name in (AUTO, candidate.backend)
        and card.matches(candidate.backend)
        and _is_allowed(candidate, card, precision or probe)
    ]
    if not allowed:  # open_backend says why this backend or precision is not possible
        return Choice(backend=_first_match(path, card) if name == AUTO else name, precision=asked)
    trial = Trial({})
    if len(allowed) > 1:
        trial = run_trial(
            probe,
            candidates,
            lambda file, candidate: open_backend(
                file, candidate.backend, precision=candidate.precision, threads=1
            ),
        )
    times_ms = {c: trial.times_ms[c] for c in allowed if c in trial.times_ms}
    best = _fastest(times_ms, card) if times_ms else allowed[0]
    skipped = skip_notes(card) if name == AUTO else ()
    return Choice(
        backend=best.backend,
        precision=card.precision if best.backend == _CUDA else best.precision,
        times_ms=times_ms,
        notes=(*skipped, *trial.notes),
    )


def skip_notes(card: ModelCard) -> tuple[str, ...]:
    """Get one line for each installed backend that is never chosen for an artefact."""
    return tuple(
        f"{name} is skipped: it failed the label check of this INT8 artefact; {_FOR_CPUS}"
        for name in installed_backends()
        if not card.matches(name)
    )


def _candidates(probe: str) -> Iterator[Candidate]:
    """List the ways to run a probe here."""
    for name in installed_backends():
        yield Candidate(name, probe)
        if (name, probe) == ("openvino", "fp32") and has_bf16():
            yield Candidate(name, "bf16")
    if version_of("onnxruntime-gpu") and nvidia_gpus():
        yield Candidate(_CUDA, probe)


def _is_allowed(candidate: Candidate, card: ModelCard, precision: str) -> bool:
    """Check a candidate's precision: bf16 must be asked for, or its labels checked at the export."""
    if candidate.backend == _CUDA:  # computes in the precision of the graph
        return precision in (AUTO, candidate.precision, card.precision)
    if precision == AUTO and candidate.precision == "bf16":
        return (card.parity.get("equal_labels_bf16") or 0.0) >= _LEAST_BF16_AGREEMENT
    return precision in (AUTO, candidate.precision)


def _fastest(times_ms: Mapping[Candidate, float], card: ModelCard) -> Candidate:
    """Take a GPU, else the fastest candidate, or one that the form of the graph suits if it is as fast."""
    by_time = sorted(times_ms, key=lambda candidate: times_ms[candidate])
    best: dict[str, Candidate] = {}
    for candidate in by_time:
        best.setdefault(candidate.backend, candidate)
    if _CUDA in best:
        return best[_CUDA]
    limit = _TIE * times_ms[by_time[0]]
    suits = (card.optimized_for, *card.form.get("suits", ()))
    close = [candidate for candidate in best.values() if times_ms[candidate] <= limit]
    return next((c for c in close if c.backend in suits), by_time[0])


def identify_artefact(path: Path) -> tuple[ModelCard, str | None]:
    """Read an artefact's card, and for an engine the name of the backend that runs it, else ``None``.

    Raises:
        ModelFileError: The file is missing, damaged, or has no card.
    """
    if path.suffix.lower() not in SUFFIXES:
        return ModelCard.from_file(path), None
    record = read_record(path)
    return record.card, str(record.tensorrt.get("kind"))


def _first_match(path: Path, card: ModelCard) -> str:
    """Get the first installed backend that the card does not exclude."""
    installed = installed_backends()
    if not installed:
        raise BackendUnavailable(
            "no backend is installed", hint="pip install 'esnet-deploy[cpu]', then: esnet-doctor"
        )
    name = next(filter(card.matches, installed), None)
    if name is None:
        raise _mismatch(path, card, installed[0])
    return name


def _mismatch(path: Path, card: ModelCard, name: str) -> InvalidInput:
    passed = card.quantization.get("backends", ())
    others = "".join(f"--backend {other}, or " for other in passed[:1])
    return InvalidInput(
        f"{name} did not pass the label check of {path}, {', '.join(passed) or 'none'} did",
        hint=f"{others}{_FOR_CPUS}; --allow-mismatch runs it anyway",
    )


def _check_kind(path: Path, name: str, builder: str | None) -> None:
    """Refuse a backend that does not run this kind of artefact."""
    opens = BACKENDS[name].opens
    if opens == "any" or (builder is None and opens == "onnx") or name == builder:
        return
    if builder is None:
        raise InvalidInput(
            f"backend {name!r} runs engines, {path} is an ONNX file",
            hint=shlex.join(
                ["esnet-export", "build-engine", str(path), "--fp16", "--tensorrt", name]
            ),
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
