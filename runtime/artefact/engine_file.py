"""Engines and their records: ``NAME.engine`` with ``NAME.engine.json``, and all checks before loading.

``NAME.engine`` is a plain plan, as trtexec, Triton and DeepStream read it, with no header of ours.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.artefact.card import BatchRange, ModelCard
from runtime.artefact.card_values import record_problems
from runtime.artefact.untrusted import command_words, parse_json
from runtime.errors import (
    BackendUnavailable,
    CudaError,
    EngineMismatch,
    EsnetError,
    ModelFileError,
)
from runtime.files import atomic_path, sha256_of
from runtime.machine.gpus import Sm, sm_of, sm_text
from runtime.machine.support import limits_of, version_numbers

SUFFIXES = (".engine", ".plan")
SCHEMA = 1
_RTX_MAGIC = b"vtrt"
_BUILD = "build it with: esnet-export build-engine MODEL.onnx --fp16"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRecord:
    """Description of an engine, stored as ``NAME.engine.json``."""

    card: ModelCard
    """The card of the ONNX file it was built from, with the engine's precision and batch range."""
    plan_sha256: str
    """SHA-256 of the plan."""
    onnx: Mapping[str, str]
    """``name`` and ``sha256`` of the ONNX file."""
    tensorrt: Mapping[str, str]
    """``kind`` and ``version`` of the TensorRT that built it; ``check_library`` knows those that load it."""
    target: Mapping[str, Any]
    """``sms``: compute capabilities that it runs on, such as "8.6", or "8.0+" for 8.0 and newer; ``gpu``: GPU
    it was built on, if any."""
    precision: Mapping[str, Any]
    """``asked``: requested precision; ``built``: convolutions per type; ``mac_shares``: share of the
    multiply-accumulates per type, 0 to 1; ``fp32_nodes``: nodes kept in fp32;
    ``equal_labels``: share of labels that the conversion to fp16 does not change, if it was checked."""
    profile: BatchRange
    """Optimization profile."""
    kernels: Mapping[str, Any]
    """``count``, ``bytes_moved``, ``output_types``; empty if the compiler did not report them."""
    build: Mapping[str, Any]
    """``seconds``, ``command``, ``key``, ``date``, ``version_compatible``."""
    schema: int = SCHEMA
    """Version of this layout."""

    @property
    def rebuild_command(self) -> str:
        """The command that builds this engine again; only a safe one is taken from the record."""
        words = command_words(self.build.get("command", ""), "esnet-export", "build-engine")
        return shlex.join(words or ["esnet-export", "build-engine", "MODEL.onnx"])

    def to_json(self) -> str:
        """Convert to indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def record_path(engine_path: Path) -> Path:
    """Get the path of an engine's record."""
    return engine_path.with_name(f"{engine_path.name}.json")


def write_engine(path: Path, plan: bytes | memoryview, record: EngineRecord) -> None:
    """Write a plan, then its record, so that a record always belongs to a complete engine.

    Raises:
        OSError: The folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(plan)
        record_path(path).unlink(missing_ok=True)  # it describes the engine that is replaced
    with atomic_path(record_path(path)) as temporary:
        temporary.write_text(record.to_json() + "\n", encoding="utf-8")


def read_record(path: Path) -> EngineRecord:
    """Read the record of an engine; the plan is not read.

    Raises:
        ModelFileError: No engine, no record, or a damaged record.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"engine {str(path)!r} {problem}", hint=_BUILD)
    beside = record_path(path)
    if not beside.is_file():
        raise ModelFileError(
            f"{path} has no {beside.name} beside it, which describes its inputs and outputs",
            hint=_BUILD,
        )
    try:
        fields = parse_json(beside.read_bytes())
        if fields["schema"] != SCHEMA:
            raise ModelFileError(
                f"{beside}: schema {fields['schema']!r}, expected {SCHEMA}",
                hint="pip install --upgrade esnet-deploy",
            )
        if wrong := next(record_problems(fields), None):
            raise ValueError(wrong)
        card = ModelCard.from_json(json.dumps(fields.pop("card")), origin=str(beside))
        return EngineRecord(**{**fields, "profile": BatchRange(*fields["profile"]), "card": card})
    except ModelFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{beside} is damaged: {error}", hint=_BUILD) from error


def check_plan(path: Path, record: EngineRecord) -> None:
    """Compare a plan with its record.

    Raises:
        EngineMismatch: It was changed, truncated, or is not a plan.
    """
    if sha256_of(path) == record.plan_sha256:
        return
    plan = path.read_bytes()
    problem = "is not the engine that its record describes: the sha256 differs"
    if not plan:
        problem = "is empty"
    elif record.tensorrt.get("kind") == "tensorrt-rtx":
        size = int.from_bytes(plan[16:24], "little")
        if plan[:4] != _RTX_MAGIC:
            problem = f"is not a TensorRT-RTX engine: it starts with {plan[:4]!r}"
        elif size != len(plan):
            problem = f"is truncated or extended: {len(plan)} bytes, its header says {size}"
    raise _mismatch(f"{path} {problem}", record)


def check_library(path: Path, record: EngineRecord, *, kind: str, version: str) -> None:
    """Compare the TensorRT that built an engine with the installed one.

    A version-compatible engine also runs on newer versions with the same major number. Source:
    docs.nvidia.com/deeplearning/tensorrt/11.1.0/getting-started/support-matrix.html, "Engine Portability".

    Raises:
        EngineMismatch: Another kind, or a version that cannot load it.
    """
    built_kind, built_version = record.tensorrt["kind"], str(record.tensorrt["version"])
    if (built_kind, built_version) == (kind, version):
        return
    newest = ""
    if record.build.get("version_compatible"):
        old, new = version_numbers(built_version), version_numbers(version)
        if built_kind == kind and old[:1] == new[:1] and old <= new:
            return
        major = built_version.partition(".")[0]
        newest = f" as a version-compatible engine, for {built_version} and newer {major}.x"
    built = f"{built_kind} {built_version}"
    raise _mismatch(f"{path} was built by {built}{newest}, here is {kind} {version}", record)


def check_gpu(path: Path, record: EngineRecord, *, gpu: str, sm: Sm) -> None:
    """Compare the compute capabilities that an engine runs on with those of a GPU.

    Raises:
        EngineMismatch: Another compute capability.
    """
    sms = [str(text) for text in record.target.get("sms", ())]
    oldest = [sm_of(text.removesuffix("+")) for text in sms if text.endswith("+")]
    if sm_text(sm) in sms or any(sm >= least for least in oldest):
        return
    message = f"{path} is for compute capability {', '.join(sms)}, {gpu} has {sm_text(sm)}"
    raise EngineMismatch(message, hint=_hint_for_gpu(record, sm))


def gpu_note(path: Path, record: EngineRecord, *, gpu: str) -> str | None:
    """Warn about an engine of TensorRT that was built on another GPU model; ``None`` if there is no need.

    Kernels are timed where an engine is built, so another model of the same compute capability may run it
    slowly. Engines for several compute capabilities, and those of TensorRT-RTX, are meant for other GPUs.
    """
    built_on, sms = record.target.get("gpu"), record.target.get("sms", ())
    is_portable = len(sms) != 1 or str(sms[0]).endswith("+") or "rtx" in record.tensorrt["kind"]
    if is_portable or built_on in (None, gpu):
        return None
    return (
        f"{path.name} was built on {built_on}, with kernels that are fast there; this is {gpu}: "
        f"build it again here: {record.rebuild_command}"
    )


def load_error(path: Path, record: EngineRecord, reason: str) -> EsnetError:
    """Make the error of an engine that its TensorRT does not load.

    Args:
        path: The engine.
        record: Its record; its checks passed.
        reason: TensorRT's last error message.
    """
    library = f"{record.tensorrt.get('kind')} {record.tensorrt.get('version')}"
    text = reason.lower()
    if "driver version is insufficient" in text or "cudaerror 35" in text:
        return BackendUnavailable(
            f"the NVIDIA driver is too old for {library}: {reason}",
            hint="update the driver; esnet-doctor names the version that is needed",
        )
    if "memory" in text:
        return CudaError(
            f"{path} does not fit into GPU memory: {reason}",
            hint="free GPU memory, or use a smaller batch",
        )
    return _mismatch(f"{library} does not load {path}: {reason}", record)


def _hint_for_gpu(record: EngineRecord, sm: Sm) -> str:
    """Get the command that builds for a GPU; the recorded command may build the same engine again."""
    command = record.rebuild_command
    if record.tensorrt.get("kind") != "tensorrt-rtx":
        if sm < (8, 0):  # older than Ampere
            command = command.replace(" --hardware-compatible", "")
        return f"build it again: {command}"
    if limits_of(sm).runs_rtx:
        return f"build it for this GPU: {command} --target sm_{sm[0]}{sm[1]}"
    name, asked = record.onnx.get("name", "MODEL.onnx"), record.precision.get("asked", "fp16")
    words = ["esnet-export", "build-engine", name, f"--{asked}", "--tensorrt", "tensorrt"]
    return (
        f"TensorRT-RTX does not support SM {sm_text(sm)}; esnet-doctor shows how to install TensorRT, "
        f"then: {shlex.join(words)}"
    )


def _mismatch(message: str, record: EngineRecord) -> EngineMismatch:
    return EngineMismatch(message, hint=f"build it again: {record.rebuild_command}")
