"""Activation ranges: measured on real frames and stored as a table by module path.

A table belongs to weights, normalisation and calibration frames, not to a graph: it fits every size and form.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from export.errors import CalibrationError, ExportError
from export.graph.half import float_tensors
from export.graph.qdq import TENSORRT_SCHEME, Range, activation_scale, quantizable_tensors
from runtime.artefact.card import ModelCard
from runtime.files import atomic_path
from runtime.media.frames import batch_from_frames
from runtime.media.sources import open_source

METHODS = ("percentile", "entropy", "mse", "max")
SCHEMA = 1
_PERCENTILE = 99.99
_BINS = 2048
_CHUNK = 4
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
    """One of ``METHODS``."""
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
            fields = json.loads(path.read_text())
            if fields.get("schema") != SCHEMA:
                raise ValueError(f"schema {fields.get('schema')!r}, expected {SCHEMA}")
            items = fields["ranges"].items()
            ranges = {name: (float(low), float(high)) for name, (low, high) in items}
            tuples = {name: tuple(fields[name]) for name in ("mean", "std", "size_hw")}
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


def calibration_batches(source: Path, card: ModelCard, count: int) -> Iterator[np.ndarray]:
    """Read up to ``count`` frames, spread evenly over the source, one batch per frame.

    Args:
        source: Folder, image, video, or a text file with one path per line.
        card: Gives size and smallest batch; see ``batch_from_frames``.
        count: Largest number of frames.

    Raises:
        CalibrationError: All frames have only one colour; raised after the last one.
    """
    has_content = []
    for image in islice(_images(source, count), count):
        batch = batch_from_frames([image], card)
        has_content.append((batch != batch[0, 0, 0]).any())
        yield batch
    if has_content and not any(has_content):
        raise CalibrationError(
            f"each of the {len(has_content)} calibration frames has only one colour",
            hint="use real frames",
        )


def measure_ranges(
    model: onnx.ModelProto,
    batches: Iterable[np.ndarray],
    method: str,
    *,
    on_batch: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Range], int, str]:
    """Measure the range of every tensor that quantization needs.

    Args:
        model: Float graph with one input.
        batches: Inputs of the graph.
        method: ``max``: the full range; ``percentile``: the central 99.99 %; ``entropy``: smallest divergence
            of the histograms; ``mse``: smallest squared error.
        on_batch: Called with the number of batches done.

    Returns:
        Ranges by tensor, number of batches, and SHA-256 of the batches.

    Raises:
        CalibrationError: Another method, no batches, or an activation that is not finite.
    """
    if method not in METHODS:
        raise CalibrationError(f"unknown method {method!r}", hint=f"methods: {', '.join(METHODS)}")
    tensors = list(quantizable_tensors(model))
    run = open_on_cpu(_with_outputs(model, tensors))
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
            for name, array in zip(tensors, run(batch), strict=True):
                if not np.isfinite(array).all():
                    raise CalibrationError(
                        f"tensor {name!r} holds NaN or Inf", hint="check the weights and the frames"
                    )
                values[name].append(array)
            done += 1
            on_batch(done)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line per call
            collector.collect(values)
    if not done:
        raise CalibrationError(
            "no frames to calibrate on", hint="use a folder, list or video with frames"
        )
    histograms = collector.get_histogram_dict()
    chosen = {name: _range_of(histograms[name][:4], method, collector) for name in tensors}
    return chosen, done, digest.hexdigest()


def activation_peaks(model: onnx.ModelProto, batches: Iterable[np.ndarray]) -> dict[str, float]:
    """Measure the largest absolute value of every float tensor that a node computes.

    Args:
        model: float32 graph with one input.
        batches: Inputs of the graph.

    Returns:
        Tensor name to its peak over all batches.

    Raises:
        ExportError: There are no batches, or a tensor is not finite in float32.
    """
    floats = float_tensors(model)
    names = [name for node in model.graph.node for name in node.output if name in floats]
    nodes = []
    for name in names:  # reduced in the graph, so that no full activation is kept
        size, peak = f"{name}/magnitude", f"{name}/peak"
        nodes.append(helper.make_node("Abs", [name], [size]))
        nodes.append(helper.make_node("ReduceMax", [size], [peak], keepdims=0))
    run = open_on_cpu(_with_outputs(model, [f"{name}/peak" for name in names], nodes))
    rows = [np.array(run(batch), float) for batch in batches]
    if not rows:
        raise ExportError("no frames to measure activations on")
    peaks = np.max(rows, axis=0)
    if not np.isfinite(peaks).all():
        raise ExportError(
            f"tensor {names[int(np.argmin(np.isfinite(peaks)))]!r} is not finite in float32",
            hint="check the weights: they hold NaN or Inf",
        )
    return dict(zip(names, peaks.tolist(), strict=True))


def open_on_cpu(
    model: onnx.ModelProto, *, is_optimized: bool = True
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Open a graph with one input in ONNX Runtime, and get a function that computes its outputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not is_optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def _with_outputs(
    model: onnx.ModelProto, names: Sequence[str], nodes: Sequence[onnx.NodeProto] = ()
) -> onnx.ModelProto:
    """Copy a model, append nodes, and replace its outputs by these float32 tensors."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    result.graph.node.extend(nodes)
    result.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    return result


def _images(source: Path, count: int) -> Iterator[np.ndarray]:
    if source.suffix == ".txt" and source.is_file():
        try:
            lines = source.read_text().splitlines()
        except UnicodeDecodeError:
            raise CalibrationError(
                f"{source} is not a text file", hint="list one image a line"
            ) from None
        names = [line.split()[0] for line in lines if line.strip()]
        for name in names[:: max(1, len(names) // count)]:
            yield from (frame.image for frame in open_source(source.parent / name))
        return
    opened = open_source(source)
    step = max(1, (opened.num_frames or count) // count)
    yield from (frame.image for frame in islice(opened, 0, None, step))


def _range_of(histogram: Sequence[Any], method: str, collector: HistogramCollector) -> Range:
    """Choose a range from a tensor's histogram: counts, edges, smallest and largest value."""
    counts, edges = np.asarray(histogram[0]), np.asarray(histogram[1])
    low, high = min(float(histogram[2]), 0.0), float(histogram[3])
    if high <= low or method == "max":
        return low, high
    if method == "mse":
        return _least_squares(counts, edges, low, high)
    if method == "percentile":
        share = np.cumsum(counts) / counts.sum()
        last = min(int(np.searchsorted(share, _PERCENTILE / 100)) + 1, len(edges) - 1)
        first = int(np.searchsorted(share, 1 - _PERCENTILE / 100))
        bounds = (float(edges[first]) if low < 0 else 0.0), float(edges[last])
    else:
        limits = np.float32(low), np.float32(high)  # the collector needs numpy scalars
        threshold = collector.get_entropy_threshold((counts, edges, *limits), 128)
        bounds = float(threshold[0]), float(threshold[1])
    return max(bounds[0], low), min(bounds[1], high)


def _least_squares(counts: np.ndarray, edges: np.ndarray, low: float, high: float) -> Range:
    """Choose the shrink factor of the range that minimises the squared error of 8 bits on the histogram."""
    centres = (edges[:-1] + edges[1:]) / 2
    best = (np.inf, 1.0)
    for factor in np.linspace(0.2, 1.0, 81):
        bounds = low * factor, high * factor
        scale = (bounds[1] - bounds[0]) / 255
        clipped = np.clip(centres, *bounds)
        rounded = np.round((clipped - bounds[0]) / scale) * scale + bounds[0]
        best = min(best, (float((counts * (centres - rounded) ** 2).sum()), float(factor)))
    return low * best[1], high * best[1]
