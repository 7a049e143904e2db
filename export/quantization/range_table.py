"""Range tables: activation ranges by module path, and how they were measured.

A table belongs to weights, normalisation and calibration frames, not to a graph: it fits every size and form.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import CalibrationError
from export.graph.qdq import TENSORRT_SCHEME, Range, activation_scale
from runtime.artefact.card import ModelCard
from runtime.artefact.untrusted import parse_json
from runtime.files import atomic_path

SCHEMA = 1
_MAX = 1e30  # float32 scales stay finite
_TRT_CACHE_HEADER = "TRT-8601-EntropyCalibration2"


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeTable:
    """Activation ranges by tensor, and how they were measured."""

    weights_sha256: str
    """Hash of the checkpoint file."""
    mean: tuple[float, float, float]
    """RGB mean of the network's normalisation, 0-1 scale."""
    std: tuple[float, float, float]
    """RGB standard deviation of the network's normalisation, 0-1 scale."""
    size_hw: tuple[int, int]
    """Height and width of the calibration frames in pixels."""
    method: str
    """One of ``calibration.METHODS``."""
    num_frames: int
    """Number of calibration frames."""
    frames_sha256: str
    """Hash of the calibration batches."""
    ranges: Mapping[str, Range]
    """Smallest and largest value of each tensor; tensors are named by module path."""
    schema: int = SCHEMA
    """Version of this layout."""

    def save(self, path: Path) -> None:
        """Write the table as JSON, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> RangeTable:
        """Read a table.

        Raises:
            CalibrationError: The file is missing, damaged, or has another schema.
        """
        try:
            fields = parse_json(path.read_bytes())
            if fields.get("schema") != SCHEMA:
                raise ValueError(f"schema {fields.get('schema')!r}, expected {SCHEMA}")
            items = fields["ranges"].items()
            ranges = {name: (float(low), float(high)) for name, (low, high) in items}
            if unordered := [
                n for n, (low, high) in ranges.items() if not -_MAX <= low <= high <= _MAX
            ]:
                raise ValueError(f"the range of {unordered[0]!r} is not in order")
            tuples = {name: tuple(fields[name]) for name in ("mean", "std", "size_hw")}
            if not isinstance(fields["weights_sha256"], str):
                raise ValueError("weights_sha256 is not text")
            return cls(**{**fields, **tuples, "ranges": ranges})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CalibrationError(
                f"range table {path} cannot be read: {getattr(error, 'strerror', None) or error}",
                hint="write one with: --calibration DIR --table FILE",
            ) from error

    def require(self, card: ModelCard) -> None:
        """Compare weights and normalisation with those of an artefact.

        Raises:
            CalibrationError: One of them differs.
        """
        for name, found, wanted in (
            ("weights", self.weights_sha256[:12], str(card.source.get("sha256", ""))[:12]),
            ("mean", self.mean, card.mean),
            ("std", self.std, card.std),
        ):
            if found != wanted:
                raise CalibrationError(
                    f"the range table is for {name} {found}, the artefact has {name} {wanted}",
                    hint="calibrate this artefact: --calibration DIR",
                )


def write_trt_cache(table: RangeTable, path: Path) -> None:
    """Write a table as a calibration cache of TensorRT 8.6, for implicit quantization.

    Each line holds a tensor of the float artefact and the bits of its symmetric scale, which is the largest
    magnitude over 127. TensorRT computes in float around tensors without a line. Source: caches of
    ``trtexec --calib`` and the reader in onnxruntime, which agree on the layout.
    """
    lines = [_TRT_CACHE_HEADER]
    for name, bounds in table.ranges.items():
        scale = np.float32(activation_scale(bounds, TENSORRT_SCHEME)[0])
        lines.append(f"{name}: {scale.view(np.uint32):08x}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
