"""What this machine computes and moves at most, and how fast a model really runs on it, in a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.frames import load_frames
from benchmarks.roofline.layers import ITEM_BYTES, Device
from benchmarks.timing.latency import ENGINE, TimingConfig, Workload, cycle, measure_latency
from benchmarks.timing.statistics import Summary
from runtime.backend import identify_artefact
from runtime.machine.machine import cpu_name, num_cores
from runtime.media.frames import batch_from_frames
from runtime.segmenter import Segmenter

LEAST_SECONDS = 0.3
"""Each probe repeats at least so long; its fastest call counts."""
QUICK = TimingConfig(
    warmup_seconds=0.5,
    warmup_calls=5,
    warmup_cap_seconds=1.0,
    min_seconds=1.5,
    min_samples=15,
    cap_seconds=4.0,
)
"""Enough for a median, not for a p99."""

# (channels, side): convolutions that suit a CPU, one set for its second cache level, one for its last.
_PROBES = ((256, 32), (256, 56))
_DEPTH = 4
_LEAST_CALLS = 3
_ARRAY_VALUES = 32 * 2**20  # float32: 134 MB, beyond the caches

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """How fast a model ran here."""

    precision: str
    """Arithmetic that really ran."""
    backend: str
    """What ran it."""
    engine: Summary
    """Prepared batch in, outputs on the host out."""


def measure_machine(
    *,
    backends: Sequence[str],
    threads: int | None = None,
    least_seconds: float = LEAST_SECONDS,
) -> Device:
    """Measure the peaks of this machine's CPU, each through the best of some backends, and of its memory.

    Args:
        backends: ``openvino`` (fp32, int8, and bf16 where the CPU has it), ``onnxruntime`` (fp32, int8).
        threads: How many compute and copy; ``None`` takes every core.
        least_seconds: How long each probe repeats.
    """
    threads = threads or num_cores()
    peak_tops: dict[str, float] = {}
    for backend in backends:
        for channels, side in _PROBES:
            operations = probe_operations(channels, side)
            for precision, call in _COMPILERS[backend](channels, side, threads):
                tops = operations / _best_seconds(call, least_seconds) / 1e12
                peak_tops[precision] = max(tops, peak_tops.get(precision, 0.0))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in backends)
    return Device(
        name=cpu_name(),
        peak_tops={name: peak_tops[name] for name in ITEM_BYTES if name in peak_tops},
        bandwidth_gb_s=_measure_bandwidth(threads, least_seconds),
        source=f"measured with {threads} thread{'s' * (threads > 1)}, the fastest call each: chains of 3x3 "
        f"convolutions in {versions}; copy and sum of 134 MB arrays in numpy",
    )


def measure_model(
    path: Path,
    backend: str,
    *,
    precisions: Sequence[str],
    threads: int | None = None,
    protocol: TimingConfig = QUICK,
) -> tuple[Measured, ...]:
    """Time an artefact on generated frames.

    Args:
        path: An ONNX artefact.
        backend: What runs it.
        precisions: What to run a float artefact at; INT8 has its precision in it and is never chosen.
        threads: CPU threads; ``None`` takes every core.
        protocol: When to stop.

    Raises:
        EsnetError: The backend cannot open it.
    """
    card, _ = identify_artefact(path)
    asked = [None] if card.precision == "int8" else [p for p in precisions if p != "int8"]
    found = []
    for precision in asked:
        with Segmenter.open(
            path, backend=backend, precision=precision, threads=threads or num_cores()
        ) as segmenter:
            summary = measure_latency([_subject(segmenter)], protocol)[0]
            ran = segmenter.backend.precision
            found.append(Measured(precision=ran, backend=backend, engine=summary))
    return tuple(found)


def probe_operations(channels: int, side: int) -> int:
    """Count the operations of the chain of 3x3 convolutions that the peaks are measured with."""
    return 2 * _DEPTH * (3 * channels * side) ** 2


def _subject(segmenter: Segmenter) -> Workload:
    card = segmenter.card
    frames = load_frames(None, card.size_hw).frames[:4]
    batches = cycle([np.ascontiguousarray(batch_from_frames([frame], card)) for frame in frames])
    infer = segmenter.backend.infer
    return Workload(name="model", scope=ENGINE, call=lambda index: infer(batches(index)))


def _measure_bandwidth(threads: int, least_seconds: float) -> float:
    """Measure GB/s: the better of copying and of adding two arrays, each thread on its own part."""
    left, right, total = (np.full(_ARRAY_VALUES, value, np.float32) for value in (1, 2, 0))
    step = -(-_ARRAY_VALUES // threads)
    parts = [slice(start, start + step) for start in range(0, _ARRAY_VALUES, step)]

    def copy(part: slice) -> None:
        np.copyto(total[part], left[part])

    def add(part: slice) -> None:
        np.add(left[part], right[part], out=total[part])

    with ThreadPoolExecutor(threads) as pool:
        copy_seconds = _best_seconds(lambda: list(pool.map(copy, parts)), least_seconds)
        add_seconds = _best_seconds(lambda: list(pool.map(add, parts)), least_seconds)
    return left.nbytes * max(2 / copy_seconds, 3 / add_seconds) / 1e9


def _best_seconds(call: Call, least_seconds: float) -> float:
    """Repeat a call, the first one untimed, and return its fastest run."""
    call()
    times: list[float] = []
    while len(times) < _LEAST_CALLS or sum(times) < least_seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _openvino_calls(channels: int, side: int, threads: int) -> Iterator[tuple[str, Call]]:

    from runtime.backends.openvino import shared_core

    core = shared_core()
    hints = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        del hints["bf16"]
    for precision, hint in hints.items():
        config = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = core.read_model(_probe(channels, side, is_int8=precision == "int8"))
        request = core.compile_model(model, "CPU", config).create_infer_request()
        yield precision, partial(request.infer, {"x": _image(channels, side)}, share_inputs=True)


def _onnxruntime_calls(channels: int, side: int, threads: int) -> Iterator[tuple[str, Call]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for precision in ("fp32", "int8"):
        session = ort.InferenceSession(
            _probe(channels, side, is_int8=precision == "int8"),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
        yield precision, partial(session.run, None, {"x": _image(channels, side)})


_COMPILERS: dict[str, Callable[[int, int, int], Iterator[tuple[str, Call]]]] = {
    "openvino": _openvino_calls,
    "onnxruntime": _onnxruntime_calls,
}


def _image(channels: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, channels, side, side), np.float32)


def _probe(channels: int, side: int, *, is_int8: bool) -> bytes:
    """Write a chain of 3x3 convolutions with ReLU; for INT8 with Q/DQ where CPU engines want it."""
    shape, kernel = [1, channels, side, side], (channels, channels, 3, 3)
    random = np.random.default_rng(0)
    constants = {"scale": np.float32(0.02), "zero": np.uint8(0), "zero_weight": np.int8(0)}
    nodes, tensor = [], "x"
    for index in range(_DEPTH):
        name = f"{index}.weight"
        weight = name
        if is_int8:
            constants[name] = random.integers(-127, 128, kernel).astype(np.int8)
            weight, quantized, data = (f"{index}.{what}" for what in ("weight_dq", "q", "dq"))
            nodes += [
                helper.make_node("DequantizeLinear", [name, "scale", "zero_weight"], [weight]),
                helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [quantized]),
                helper.make_node("DequantizeLinear", [quantized, "scale", "zero"], [data]),
            ]
            tensor = data
        else:
            constants[name] = random.standard_normal(kernel).astype(np.float32) / channels
        nodes += [
            helper.make_node("Conv", [tensor, weight], [f"{index}.conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{index}.conv"], [f"{index}.out"]),
        ]
        tensor = f"{index}.out"
    edges = [
        helper.make_tensor_value_info(edge, TensorProto.FLOAT, shape) for edge in ("x", tensor)
    ]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "probe", edges[:1], edges[1:], arrays)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())
