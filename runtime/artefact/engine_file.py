"""An engine and the file beside it, ``NAME.engine.json``; all that can be checked before loading.

``NAME.engine`` is a plain plan, as trtexec, Triton and DeepStream read it; nothing is put before it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.artefact.card import BatchRange, ModelCard
from runtime.errors import EngineMismatch, ModelFileError
from runtime.files import atomic_path, sha256_of

SUFFIXES = (".engine", ".plan")
SCHEMA = 1
_RTX_MAGIC, _RTX_HEADER_BYTES = b"vtrt", 64
_CLASSIC_MAGICS = (b"ftrt", b"ptrt")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRecord:
    """What is known of an engine; the file ``NAME.engine.json``."""

    card: ModelCard
    """The card of the ONNX file it was built from, at the engine's precision and batch range."""
    plan_sha256: str
    """Hash of the plan."""
    onnx: Mapping[str, str]
    """``name`` and ``sha256`` of the ONNX file."""
    tensorrt: Mapping[str, str]
    """``kind`` and ``version`` of what built it; only the same can load it."""
    target: Mapping[str, Any]
    """``sms``: compute capabilities it runs on, as "8.6"; ``gpu``: where it was built, if there was one."""
    precision: Mapping[str, Any]
    """``asked``, ``built`` and ``islands``: nodes kept in fp32."""
    profile: BatchRange
    """Optimization profile."""
    kernels: Mapping[str, Any]
    """``count``, ``bytes_moved``, ``output_types``; empty where the compiler did not tell."""
    build: Mapping[str, Any]
    """``seconds``, ``command``, ``key``, ``date``."""
    schema: int = field(default=SCHEMA)
    """Version of this layout."""

    @property
    def rebuild_command(self) -> str:
        """The command that makes this engine again."""
        return str(self.build.get("command") or "esnet-export build-engine MODEL.onnx")

    def to_json(self) -> str:
        """Write it as JSON, for people too."""
        fields = {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if entry.name != "card"
        }
        return json.dumps(
            {**fields, "card": json.loads(self.card.to_json())}, indent=2, default=dict
        )


def record_path(engine_path: Path) -> Path:
    """Get the name of the file beside an engine."""
    return engine_path.with_name(f"{engine_path.name}.json")


def write_engine(path: Path, plan: bytes | memoryview, record: EngineRecord) -> None:
    """Write a plan and then its record: whoever finds the record finds a whole engine.

    Raises:
        OSError: The folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(plan)
        record_path(path).unlink(missing_ok=True)  # it is of the engine that goes now
    with atomic_path(record_path(path)) as temporary:
        temporary.write_text(record.to_json() + "\n", encoding="utf-8")


def read_record(path: Path) -> EngineRecord:
    """Read the record of an engine; the plan itself is not looked at.

    Raises:
        ModelFileError: No engine, no record, or a record that is not one.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"engine {str(path)!r} {what}", hint=_BUILD)
    beside = record_path(path)
    if not beside.is_file():
        raise ModelFileError(
            f"{path} has no {beside.name} beside it, which says what it takes and gives",
            hint=_BUILD,
        )
    try:
        fields = json.loads(beside.read_text(encoding="utf-8"))
        if fields["schema"] != SCHEMA:
            raise ModelFileError(
                f"{beside}: schema {fields['schema']!r}, expected {SCHEMA}",
                hint="pip install --upgrade esnet-deploy",
            )
        card = ModelCard.from_json(json.dumps(fields.pop("card")), origin=str(beside))
        return EngineRecord(**{**fields, "profile": BatchRange(*fields["profile"]), "card": card})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{beside} is damaged: {error}", hint=_BUILD) from error


def check_plan(path: Path, record: EngineRecord) -> None:
    """Compare a plan with its record: hash, then header.

    Raises:
        EngineMismatch: It was changed, cut short, or is not a plan at all.
    """
    if path.stat().st_size == 0:
        raise EngineMismatch(f"{path} is empty", hint=_again(record))
    if sha256_of(path) == record.plan_sha256:
        return
    with path.open("rb") as file:
        header = file.read(_RTX_HEADER_BYTES)
    problem = "is not the engine that its record describes: its sha256 is another"
    if record.tensorrt.get("kind") == "tensorrt-rtx":
        if header[:4] != _RTX_MAGIC:
            problem = f"is not a TensorRT-RTX engine: it starts with {header[:4]!r}"
        elif (told := int.from_bytes(header[16:24], "little")) != path.stat().st_size:
            problem = f"is cut short or grown: {path.stat().st_size} bytes, its header says {told}"
    raise EngineMismatch(f"{path} {problem}", hint=_again(record))


def check_library(path: Path, record: EngineRecord, *, kind: str, version: str) -> None:
    """Compare the TensorRT that built an engine with the one that shall load it.

    Raises:
        EngineMismatch: Another kind or version.
    """
    built = record.tensorrt
    if (built.get("kind"), built.get("version")) != (kind, version):
        raise EngineMismatch(
            f"{path} was built by {built.get('kind')} {built.get('version')}, here is {kind} {version}",
            hint=_again(record),
        )


def check_gpu(path: Path, record: EngineRecord, *, gpu: str, sm: tuple[int, int]) -> None:
    """Compare the GPUs an engine is for with the one that shall run it.

    Raises:
        EngineMismatch: Another compute capability.
    """
    sms = [str(text) for text in record.target.get("sms", ())]
    if f"{sm[0]}.{sm[1]}" not in sms:
        raise EngineMismatch(
            f"{path} is for compute capability {', '.join(sms)}, {gpu} has {sm[0]}.{sm[1]}",
            hint=_again(record),
        )


def describe_foreign(header: bytes) -> str | None:
    """Say what a file's first bytes show it to be, where that is known: a helper for messages."""
    if header[:4] == _RTX_MAGIC:
        return "a TensorRT-RTX engine"
    if header[:4] in _CLASSIC_MAGICS:
        return "a TensorRT engine"
    length = int.from_bytes(header[:4], "little")
    if header[4:5] == b"{" and length < 1 << 20:
        return "an engine of ultralytics, which puts its own metadata before the plan"
    return None


_BUILD = "build it with: esnet-export build-engine MODEL.onnx --fp16"


def _again(record: EngineRecord) -> str:
    return f"build it again: {record.rebuild_command}"
