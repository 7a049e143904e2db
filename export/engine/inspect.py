"""Describe an engine: its record, and its layers where this machine's TensorRT loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.engine.kernels import Kernel, kernels_of_plan
from runtime.artefact.engine_file import EngineRecord, check_library, check_plan, read_record
from runtime.artefact.tensors import tensor_specs
from runtime.errors import EsnetError
from runtime.tensorrt_api import load_tensorrt


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInspection:
    """Description of an engine."""

    path: Path
    """Engine file."""
    num_bytes: int
    """Size of the file."""
    record: EngineRecord
    """Its record."""
    layers: tuple[Kernel, ...]
    """Its kernels; empty if TensorRT does not load it here."""
    problem: str | None
    """Reason why the layers are unknown; ``None`` if they are known."""


def inspect_engine(path: Path) -> EngineInspection:
    """Read the record of an engine, and list the layers if TensorRT loads it here.

    Raises:
        ModelFileError: No engine, no record, or a damaged record.
    """
    record = read_record(path)
    layers: tuple[Kernel, ...] = ()
    problem: str | None = None
    try:
        check_plan(path, record)
        trt = load_tensorrt(str(record.tensorrt["kind"]))
        check_library(path, record, kind=trt.kind, version=trt.version)
        spec = next(tensor_specs(record.card))
        layers = kernels_of_plan(
            trt,
            path.read_bytes(),
            version_compatible=bool(record.build.get("version_compatible")),
            input_name=spec.name,
            shape=(record.profile.opt, *spec.item_shape),
        )
        if not layers:
            problem = (
                f"{trt.kind} does not load it here: {trt.log.last_error() or 'no reason given'}"
            )
    except EsnetError as error:
        problem = str(error)
    return EngineInspection(
        path=path,
        num_bytes=path.stat().st_size,
        record=record,
        layers=layers,
        problem=problem,
    )
