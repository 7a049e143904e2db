"""Ranges of activations, measured once on real frames and kept as a small table by module path.

A table belongs to weights, normalisation and calibration, not to a graph: it serves all sizes and forms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from export.errors import CalibrationError
from export.graph.qdq import TENSORRT_SCHEME, Range, activation_scale, quantizable_tensors
from runtime.files import atomic_path

METHODS = ("percentile", "entropy", "mse", "max")
SCHEMA = 1
_PERCENTILE = 99.99
_BINS = 2048
_CHUNK = 4
_TRT_CACHE_HEADER = "TRT-8601-EntropyCalibration2"


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeTable:
    """Ranges by tensor, and what they were measured with."""

    weights_sha256: str
    """Hash of the checkpoint file."""
    mean: tuple[float, float, float]
    """Normalisation the network saw."""
    std: tuple[float, float, float]
    """Normalisation the network saw."""
    size_hw: tuple[int, int]
    """Size of the calibration frames."""
    method: str
    """One of ``METHODS``."""
    num_frames: int
    """Frames measured."""
    frames_sha256: str
    """Hash of the frames' names and pixels."""
    ranges: Mapping[str, Range]
    """Tensor, named by module path, to its smallest and largest value."""
    schema: int = SCHEMA
    """Version of this layout."""

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> RangeTable:
        """Read it back.

        Raises:
            CalibrationError: Missing, damaged, or of another layout.
        """
        try:
            fields = json.loads(path.read_text())
            if fields.get("schema") != SCHEMA:
                raise CalibrationError(
                    f"{path}: schema {fields.get('schema')!r}, expected {SCHEMA}"
                )
            pairs = {
                name: (float(low), float(high)) for name, (low, high) in fields["ranges"].items()
            }
            tuples = {name: tuple(fields[name]) for name in ("mean", "std", "size_hw")}
            return cls(**{**fields, **tuples, "ranges": pairs})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise CalibrationError(
                f"range table {path} cannot be read: {error}",
                hint="calibrate again: --calibration DIR",
            ) from error

    def require(self, *, weights_sha256: str, mean: Sequence[float], std: Sequence[float]) -> None:
        """Refuse a table of other weights or another normalisation.

        Raises:
            CalibrationError: With what differs.
        """
        wanted = {"weights": weights_sha256[:12], "mean": tuple(mean), "std": tuple(std)}
        found = {"weights": self.weights_sha256[:12], "mean": self.mean, "std": self.std}
        for name, value in wanted.items():
            if found[name] != value:
                raise CalibrationError(
                    f"the range table is of {name} {found[name]}, the artefact of {name} {value}",
                    hint="calibrate this artefact: --calibration DIR",
                )


def write_trt_cache(table: RangeTable, path: Path) -> None:
    """Write a table as the calibration cache of TensorRT 8.6, for implicit quantization there.

    Each line holds a tensor of the float artefact and the bits of its symmetric scale, which is the largest
    magnitude over 127. TensorRT computes in float around tensors that have no line. Source: caches of
    ``trtexec --calib`` and the reader in onnxruntime, which agree on the layout.
    """
    lines = [_TRT_CACHE_HEADER]
    for name, bounds in table.ranges.items():
        scale = np.float32(activation_scale(bounds, TENSORRT_SCHEME)[0])
        lines.append(f"{name}: {scale.view(np.uint32):08x}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def measure_ranges(
    model: onnx.ModelProto,
    batches: Iterable[np.ndarray],
    method: str,
    *,
    on_batch: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Range], int, str]:
    """Measure the range of every tensor that quantization needs.

    Args:
        model: The float graph.
        batches: Inputs as the graph takes them.
        method: ``max``: all that occurred; ``percentile``: what lies within 99.99 %; ``entropy``: the least
            divergence of the histograms; ``mse``: the least squared error.
        on_batch: Called with the number of batches done.

    Returns:
        Ranges by tensor, the number of batches, and a hash of them.

    Raises:
        CalibrationError: No frames, or values that are not finite.
    """
    tensors = list(quantizable_tensors(model))
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probed.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    collector = HistogramCollector(
        method="entropy",
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=128,
        percentile=_PERCENTILE,
        scenario="same",
    )
    source, digest, done = iter(batches), hashlib.sha256(), 0
    while chunk := list(islice(source, _CHUNK)):
        values: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
        for batch in chunk:
            digest.update(batch.tobytes())
            for name, array in zip(
                tensors, session.run(tensors, {session.get_inputs()[0].name: batch}), strict=True
            ):
                if not np.isfinite(array).all():
                    raise CalibrationError(
                        f"tensor {name!r} holds NaN or Inf", hint="check the weights and the frames"
                    )
                values[name].append(array)
            done += 1
            on_batch(done)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for every call
            collector.collect(values)
    if not done:
        raise CalibrationError(
            "no frames to calibrate on", hint="give a folder, list or video with frames"
        )
    histograms = {name: entry[:4] for name, entry in collector.get_histogram_dict().items()}
    chosen = {name: _range_of(histograms[name], method, collector) for name in tensors}
    return chosen, done, digest.hexdigest()


def _range_of(histogram: Sequence[Any], method: str, collector: HistogramCollector) -> Range:
    """Choose a range from a tensor's histogram: counts, edges, smallest, largest value."""
    counts, edges = np.asarray(histogram[0]), np.asarray(histogram[1])
    low, high = min(float(histogram[2]), 0.0), float(histogram[3])
    if high <= low:
        return low, high
    if method == "max":
        return low, high
    if method == "percentile":
        share = np.cumsum(counts) / counts.sum()
        upper = float(
            edges[min(int(np.searchsorted(share, _PERCENTILE / 100)) + 1, len(edges) - 1)]
        )
        lower = float(edges[int(np.searchsorted(share, 1 - _PERCENTILE / 100))]) if low < 0 else 0.0
        return float(max(lower, low)), float(min(upper, high))
    if method == "mse":
        return _least_squares(counts, edges, low, high)
    bounds = np.float32(low), np.float32(high)  # the collector wants numpy's own
    threshold = collector.get_entropy_threshold((counts, edges, *bounds), 128)
    return float(max(float(threshold[0]), low)), float(min(float(threshold[1]), high))


def _least_squares(counts: np.ndarray, edges: np.ndarray, low: float, high: float) -> Range:
    """Shrink the range while the squared error of 8 bits on the histogram falls."""
    centres = (edges[:-1] + edges[1:]) / 2
    best = (np.inf, 1.0)
    for factor in np.linspace(0.2, 1.0, 81):
        bounds = low * factor, high * factor
        scale = (bounds[1] - bounds[0]) / 255
        clipped = np.clip(centres, *bounds)
        rounded = np.round((clipped - bounds[0]) / scale) * scale + bounds[0]
        best = min(best, (float((counts * (centres - rounded) ** 2).sum()), float(factor)))
    return low * best[1], high * best[1]
