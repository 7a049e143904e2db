"""Measurements on this machine: peak compute per precision, memory bandwidth, and the time of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.models import precisions_of
from benchmarks.roofline.layers import Device, network_from_onnx
from benchmarks.timing.latency import TimingConfig, engine_workload, measure_latency
from benchmarks.timing.statistics import Summary
from esnet.data.scenes import street_scene
from export.graph.qdq import CPU_SCHEME, insert_qdq, quantizable_tensors
from runtime.artefact.card import ModelCard
from runtime.backend import open_backend
from runtime.machine.machine import cpu_name, num_cores
from runtime.machine.onednn import has_bf16
from runtime.media.frames import batch_from_frames

_TIMING = TimingConfig(warmup_calls=5, warmup_cap_seconds=1.0, min_samples=15, cap_seconds=4.0)
_Feed = dict[str, np.ndarray]
_LEAST_SECONDS, _LEAST_CALLS = 0.3, 3  # per probe
# (channels, side): activations fit the second or the last cache level.
_PROBES = ((256, 32), (256, 56))
_DEPTH = 4
_ARRAY_VALUES = 32 * 2**20  # float32: 134 MB, larger than the caches


def measure_machine(backend: str) -> Device:
    """Measure the peak of this CPU at each precision, and its memory bandwidth, with every core.

    ``backend`` is ``openvino`` (fp32, int8, and bf16 if the CPU has it) or ``onnxruntime`` (fp32, int8).
    """
    compile_probe = {"openvino": _openvino_call, "onnxruntime": _onnxruntime_call}[backend]
    peak_tops: dict[str, float] = {}
    for channels, side in _PROBES:
        feed = {"x0": np.random.default_rng(0).random((1, channels, side, side), np.float32)}
        for precision in ("fp32", "bf16", "int8"):
            model = _probe(channels, side, is_int8=precision == "int8")
            if call := compile_probe(model.SerializeToString(), precision, feed):
                tops = network_from_onnx(model).flops / _best_seconds(call) / 1e12
                peak_tops[precision] = max(tops, peak_tops.get(precision, 0.0))
    threads = num_cores()
    return Device(
        name=cpu_name(),
        peak_tops=peak_tops,
        bandwidth_gb_s=_measure_bandwidth(),
        source=f"measured with {threads} thread{'s' * (threads > 1)}, fastest call: chains of 3x3 "
        f"convolutions in {backend} {metadata.version(backend)}; sum of 134 MB arrays in numpy",
    )


def measure_model(path: Path, backend: str, precisions: Sequence[str]) -> dict[str, Summary]:
    """Time an ONNX artefact with every core; return the time in ms from input to outputs by precision.

    A float artefact runs at those of ``precisions`` except INT8, an INT8 artefact at its own.

    Raises:
        EsnetError: The backend cannot open the artefact.
    """
    card, measured = ModelCard.from_file(path), {}
    batch = batch_from_frames([street_scene(card.size_hw).image], card)
    for precision in precisions_of(path, [name for name in precisions if name != "int8"]):
        with open_backend(path, backend, precision=precision, threads=num_cores()) as opened:
            workload = engine_workload(backend, opened, [batch])
            measured[opened.precision] = measure_latency([workload], _TIMING)[0]
    return measured


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
    if not is_int8:
        return model
    return insert_qdq(model, dict.fromkeys(quantizable_tensors(model), (0.0, 5.0)), CPU_SCHEME)


def _openvino_call(model: bytes, precision: str, feed: _Feed) -> Callable[[], object] | None:
    from runtime.backends.openvino import shared_core

    core = shared_core()
    if precision == "bf16" and not has_bf16():
        return None
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": num_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
    return partial(request.infer, feed, share_inputs=True)


def _onnxruntime_call(model: bytes, precision: str, feed: _Feed) -> Callable[[], object] | None:
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
    arrays = [[array[part] for part in parts] for array in (left, right, total)]
    with ThreadPoolExecutor(num_cores()) as pool:
        seconds = _best_seconds(lambda: list(pool.map(np.add, *arrays)))
    return 3 * left.nbytes / seconds / 1e9


def _best_seconds(call: Callable[[], object]) -> float:
    """Repeat a call after an untimed one; returns the duration of the fastest."""
    call()
    times: list[float] = []
    while len(times) < _LEAST_CALLS or sum(times) < _LEAST_SECONDS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
