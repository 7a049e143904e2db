"""Measurements on this machine: peak compute per precision, memory bandwidth, and the time of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.frames import load_frames
from benchmarks.roofline.layers import ITEM_BYTES, Device, network_from_onnx
from benchmarks.timing.latency import ENGINE, TimingConfig, Workload, cycle, measure_latency
from benchmarks.timing.statistics import Summary
from export.graph.qdq import CPU_SCHEME, insert_qdq, quantizable_tensors
from runtime.artefact.card import ModelCard
from runtime.backend import open_backend
from runtime.backends.base import Backend
from runtime.machine.machine import cpu_name, num_cores
from runtime.media.frames import batch_from_frames

QUICK = TimingConfig(
    warmup_seconds=0.5,
    warmup_calls=5,
    warmup_cap_seconds=1.0,
    min_seconds=1.5,
    min_samples=15,
    cap_seconds=4.0,
)
"""Timing for a median without p99."""

_LEAST_SECONDS, _LEAST_CALLS = 0.3, 3  # per probe
_PROBES = (
    (256, 32),
    (256, 56),
)  # (channels, side): activations fit the second or the last cache level
_DEPTH = 4
_ARRAY_VALUES = 32 * 2**20  # float32: 134 MB, larger than the caches


def measure_machine(backends: Sequence[str]) -> Device:
    """Measure the peak of this CPU at each precision, and its memory bandwidth, with every core.

    Args:
        backends: ``openvino`` (fp32, int8, and bf16 if the CPU has it), ``onnxruntime`` (fp32, int8). The
            fastest of them counts.
    """
    peak_tops: dict[str, float] = {}
    for backend in backends:
        for channels, side in _PROBES:
            flops = network_from_onnx(_probe(channels, side)).flops
            for precision, call in _probe_calls(backend, channels, side):
                tops = flops / _best_seconds(call) / 1e12
                peak_tops[precision] = max(tops, peak_tops.get(precision, 0.0))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in backends)
    threads = num_cores()
    return Device(
        name=cpu_name(),
        peak_tops={name: peak_tops[name] for name in ITEM_BYTES if name in peak_tops},
        bandwidth_gb_s=_measure_bandwidth(),
        source=f"measured with {threads} thread{'s' * (threads > 1)}, fastest call: chains of 3x3 "
        f"convolutions in {versions}; sum of 134 MB arrays in numpy",
    )


def measure_model(
    path: Path, backend: str, *, precisions: Sequence[str], config: TimingConfig = QUICK
) -> dict[str, Summary]:
    """Time an ONNX artefact on generated frames with every core.

    Args:
        path: ONNX artefact.
        backend: Backend that runs it.
        precisions: Precisions of a float artefact; an INT8 artefact runs at its own.
        config: Duration of warm-up and measurement.

    Returns:
        Precision that ran -> time from input batch to outputs on the host, ms.

    Raises:
        EsnetError: The backend cannot open the artefact.
    """
    card = ModelCard.from_file(path)
    frames = load_frames(None, card.size_hw).frames[:4]
    batches = cycle([batch_from_frames([frame], card) for frame in frames])
    is_int8 = card.precision == "int8"
    measured = {}
    for precision in [None] if is_int8 else [name for name in precisions if name != "int8"]:
        with open_backend(path, backend, precision=precision, threads=num_cores()) as opened:
            call = partial(_infer, opened, batches)
            summaries = measure_latency([Workload(name="model", scope=ENGINE, call=call)], config)
            measured[opened.precision] = summaries[0]
    return measured


def _infer(backend: Backend, batches: Callable[[int], np.ndarray], index: int) -> object:
    return backend.infer(batches(index))


def _probe(channels: int, side: int, *, is_int8: bool = False) -> onnx.ModelProto:
    """Make a chain of 3x3 convolutions with ReLU, float32 (1, channels, side, side) in and out."""
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(_DEPTH):
        weight = random.standard_normal((channels, channels, 3, 3)).astype(np.float32) / channels
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])
        for name in ("x0", f"x{_DEPTH}")
    ]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ranges = dict.fromkeys(quantizable_tensors(model), (0.0, 5.0))
    return insert_qdq(model, ranges, CPU_SCHEME) if is_int8 else model


def _probe_calls(
    backend: str, channels: int, side: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Compile the probe at each precision of a backend; yield precision and inference call."""
    feed = {"x0": np.random.default_rng(0).random((1, channels, side, side), np.float32)}
    compilers = {"openvino": _openvino_call, "onnxruntime": _onnxruntime_call}
    for precision in ("fp32", "bf16", "int8"):
        model = _probe(channels, side, is_int8=precision == "int8").SerializeToString()
        if call := compilers[backend](model, precision, feed):
            yield precision, call


def _openvino_call(
    model: bytes, precision: str, feed: dict[str, np.ndarray]
) -> Callable[[], object] | None:
    from runtime.backends.openvino import shared_core

    core = shared_core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": num_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
    return partial(request.infer, feed, share_inputs=True)


def _onnxruntime_call(
    model: bytes, precision: str, feed: dict[str, np.ndarray]
) -> Callable[[], object] | None:
    import onnxruntime as ort

    if precision == "bf16":
        return None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_cores()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, feed)


def _measure_bandwidth() -> float:
    """Measure GB/s of adding two arrays into a third, split between threads."""
    left, right, total = (np.full(_ARRAY_VALUES, value, np.float32) for value in (1, 2, 0))
    step = -(-_ARRAY_VALUES // num_cores())
    parts = [slice(start, start + step) for start in range(0, _ARRAY_VALUES, step)]

    def add(part: slice) -> None:
        np.add(left[part], right[part], out=total[part])

    with ThreadPoolExecutor(num_cores()) as pool:
        return 3 * left.nbytes / _best_seconds(lambda: list(pool.map(add, parts))) / 1e9


def _best_seconds(call: Callable[[], object]) -> float:
    """Repeat a call after an untimed one; returns the duration of the fastest."""
    call()
    times: list[float] = []
    while len(times) < _LEAST_CALLS or sum(times) < _LEAST_SECONDS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
