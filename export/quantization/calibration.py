"""Calibration: measure activation ranges on real frames."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from export.errors import CalibrationError, ExportError
from export.graph.editor import GraphEditor
from export.graph.half import float_tensors
from export.graph.qdq import Range, quantizable_tensors
from export.graph.scores import SCORES, find_scores, score_bounds
from runtime.artefact.card import ModelCard
from runtime.media.frames import batch_from_frames
from runtime.media.sources import open_source

METHODS = ("percentile", "entropy", "mse", "max")
_PERCENTILE = 99.99
_BINS = 2048
_STRIDE = 5
"""Histograms count every fifth value: odd, so that each column of an even width takes part."""


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
    """Measure the range of every tensor that quantization needs, and of the scores for ``quantize_scores``.

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
    tensors, scores = list(quantizable_tensors(model)), find_scores(model)
    run = open_on_cpu(_with_samples(model, tensors, {scores[0]: 3 + scores[1]} if scores else {}))
    collector = HistogramCollector(
        method="entropy",
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=128,
        percentile=_PERCENTILE,
        scenario="same",
    )
    digest, done = hashlib.sha256(), 0
    ends: list[np.ndarray] = []  # of each batch, float32 (T, 2)
    score_ranges: list[Range] = []
    for done, batch in enumerate(batches, start=1):
        digest.update(batch.tobytes())
        samples = run(batch)
        if scores:
            score_ranges.append(score_bounds(samples.pop(), scores[1]))
        for name, sample in zip(tensors, samples, strict=True):
            if not np.isfinite(sample).all():
                raise CalibrationError(
                    f"tensor {name!r} holds NaN or Inf", hint="check the weights and the frames"
                )
        ends.append(np.array([sample[-2:] for sample in samples]))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line per call
            collector.collect({n: s[:-2] for n, s in zip(tensors, samples, strict=True)})
        on_batch(done)
    if not done:
        raise CalibrationError(
            "no frames to calibrate on", hint="use a folder, list or video with frames"
        )
    lows, highs = np.min(ends, 0)[:, 0].tolist(), np.max(ends, 0)[:, 1].tolist()
    chosen = {
        name: _range_of(collector.get_histogram_dict()[name], (low, high), method, collector)
        for name, low, high in zip(tensors, lows, highs, strict=True)
    }
    if scores:
        chosen[SCORES] = min(low for low, _ in score_ranges), max(high for _, high in score_ranges)
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
    editor = GraphEditor(model)
    peaks = []
    for name in names:  # reduced in the graph, so that no full activation is kept
        size = editor.add("Abs", f"{name}/magnitude", [name])
        peaks.append(editor.add("ReduceMax", f"{name}/peak", [size], keepdims=0))
    run = open_on_cpu(with_outputs(editor, dict.fromkeys(peaks, 0)))
    rows = [np.array(run(batch), float) for batch in batches]
    if not rows:
        raise ExportError("no frames to measure activations on")
    largest = np.max(rows, axis=0)
    if not np.isfinite(largest).all():
        raise ExportError(
            f"tensor {names[int(np.argmin(np.isfinite(largest)))]!r} is not finite in float32",
            hint="check the weights: they hold NaN or Inf",
        )
    return dict(zip(names, largest.tolist(), strict=True))


def open_on_cpu(
    model: onnx.ModelProto, *, is_optimized: bool = True
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Open a graph with one input in ONNX Runtime, and get a function that computes its outputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.execution_order = (
        ort.ExecutionOrder.PRIORITY_BASED
    )  # reduces what a tensor was kept for early
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not is_optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def _with_samples(
    model: onnx.ModelProto, tensors: Sequence[str], others: Mapping[str, int]
) -> onnx.ModelProto:
    """Make a model whose outputs are samples of some tensors, and other tensors in full, given with rank.

    A sample has every ``_STRIDE``-th value, then the smallest and the largest one, float32 (S,). It is taken
    in the graph, so that no full activation is kept.
    """
    editor = GraphEditor(model)
    constants = {
        "flat": -1,
        "start": 0,
        "end": np.iinfo(np.int64).max,
        "axis": 0,
        "stride": _STRIDE,
    }
    flat, *slicing = [
        editor.add_array(f"sample.{name}", np.array([value], np.int64))
        for name, value in constants.items()
    ]
    samples = []
    for tensor in tensors:
        values = editor.add("Reshape", f"{tensor}/flat", [tensor, flat])
        parts = [
            editor.add("Slice", f"{tensor}/some", [values, *slicing]),
            editor.add("ReduceMin", f"{tensor}/low", [values], keepdims=1),
            editor.add("ReduceMax", f"{tensor}/high", [values], keepdims=1),
        ]
        samples.append(editor.add("Concat", f"{tensor}/sample", parts, axis=0))
    return with_outputs(editor, {**dict.fromkeys(samples, 1), **others})


def with_outputs(editor: GraphEditor, ranks: Mapping[str, int]) -> onnx.ModelProto:
    """Replace the outputs of a graph by these float32 tensors, given with their ranks."""
    del editor.graph.output[:]
    editor.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
        for name, rank in ranks.items()
    )
    return editor.finish()


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


def _range_of(
    histogram: Sequence[Any], ends: Range, method: str, collector: HistogramCollector
) -> Range:
    """Choose a range from a tensor's histogram (counts, edges), and its smallest and largest value."""
    counts, edges = np.asarray(histogram[0]), np.asarray(histogram[1])
    low, high = min(ends[0], 0.0), ends[1]
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
