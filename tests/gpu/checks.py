"""Checks of the CUDA code for any device: a GPU in ``tests/gpu``, the stub in ``tests/gpu_rules``."""

from __future__ import annotations

import importlib
import itertools
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.frames import FrameSet
from benchmarks.models import BenchOptions
from benchmarks.scopes import END_TO_END
from benchmarks.timing.latency import TimingConfig, Workload, engine_workload, measure_latency
from benchmarks.timing.suite import bench_models
from benchmarks.timing.throughput import filled_slots, measure_rate
from esnet.metrics import label_agreement
from runtime.artefact.tensors import TensorSpec
from runtime.backends.base import Backend
from runtime.backends.gpu import GpuBackend
from runtime.console import parse_size
from runtime.cuda.device import CudaDevice
from runtime.cuda.ring import Enqueue, SlotLayout, SlotRing
from runtime.slots import Ticket
from tests.gpu.overlap import StageClock

SIZE_HW = parse_size(os.environ.get("ESNET_GPU_SIZE", "512x1024"))
MIN_AGREEMENT = {"fp32": 0.999, "fp16": 0.99, "int8": 0.93}
"""Smallest share of pixels with the label of torch fp32, by precision."""
MAX_DRIFT_BYTES = 8 << 20
"""Allowed change of free device memory: a few driver blocks of 2 MiB, for other processes on the GPU."""
REFERENCE, BASELINE, COMPILED = "torch eager fp32", "torch eager fp16", "torch.compile fp16"
"""Torch pipelines: labels are compared with the first, speed with the second."""
BATCH = 8
IS_QUICK = os.environ.get("ESNET_GPU_QUICK") == "1"
NUM_FRAMES = 400 if IS_QUICK else 4000
"""Frames to send through the ring."""
TIMING = TimingConfig(
    warmup_seconds=0.1 if IS_QUICK else 0.5,
    warmup_cap_seconds=0.2 if IS_QUICK else 2.0,
    min_seconds=0.2 if IS_QUICK else 1.5,
    min_samples=200,
    cap_seconds=0.4 if IS_QUICK else 3.0,
)
EXPECTED_EFFICIENCY = 0.95
"""Overlap efficiency to reach; recorded beside the measured one, never asserted."""
_BATCHES_PER_SAMPLE = 50
_NUM_IMAGES = 16

Pipeline = Callable[[np.ndarray], np.ndarray]
"""Turns a frame, RGB uint8 (H, W, 3), into class ids, uint8 (H, W)."""
DeviceCopy = Callable[[int, int, int, int], None]
"""Enqueues a device-to-device copy: target address, source address, bytes, stream handle."""
Record = Callable[..., None]
"""Keeps figures of the running test: ``record(name=value)``."""


def import_or_skip(name: str) -> ModuleType:
    """Import a module; skip the test if it is not installed. A broken installation is an error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


def check_copy(device: CudaDevice, *, num_bytes: int = 1 << 20) -> None:
    """Copy random bytes to the device and back; they must be unchanged."""
    with device.current(), ExitStack() as stack:
        source, target = device.pinned_buffer(num_bytes), device.pinned_buffer(num_bytes)
        memory, stream = device.device_buffer(num_bytes), device.new_stream()
        for item in (source, target, memory, stream):
            stack.callback(item.free)
        source.array[:] = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)
        device.copy_to_device(memory, source, num_bytes, stream)
        device.copy_to_host(target, memory, num_bytes, stream)
        stream.synchronize()
        wrong = int((source.array != target.array).sum())
    assert wrong == 0, f"{wrong} of {num_bytes} bytes came back changed"


def check_ring(
    device: CudaDevice,
    copy: DeviceCopy,
    record: Record,
    *,
    batch: int,
    use_graphs: bool,
    num_frames: int = NUM_FRAMES,
    size_hw: tuple[int, int] = SIZE_HW,
) -> None:
    """Send frames through the ring with a copy as the engine; compare every frame and watch device memory."""
    plane = size_hw[0] * size_hw[1]
    shape = (_NUM_IMAGES, batch, *size_hw, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = images.reshape(_NUM_IMAGES, batch, -1)[:, :, :plane]
    wrong = 0
    submit_us, free_bytes = [], []
    in_flight: deque[tuple[Ticket, int]] = deque()
    num_batches = max(num_frames // batch, 2 * _BATCHES_PER_SAMPLE)

    def collect_oldest(ring, clock):
        nonlocal wrong
        ticket, number = in_flight.popleft()
        (labels,), wanted = ring.collect(ticket), expected[number]
        wrong += int((labels.reshape(wanted.shape) != wanted).any(axis=1).sum())
        clock.add(ticket)

    layout, enqueue = ring_layout(batch, size_hw), copy_engine(copy, plane)
    with (
        device.current(),
        SlotRing(device, layout, enqueue, use_graphs=use_graphs, timing=True) as ring,
        ExitStack() as stack,
    ):
        for number in range(2 * ring.num_slots):  # every slot captures its CUDA graph
            ring.collect(ring.submit(images[number % _NUM_IMAGES]))
        clock = stack.enter_context(StageClock(ring))
        started = time.perf_counter()
        for number in range(num_batches):
            if len(in_flight) == ring.num_slots:
                collect_oldest(ring, clock)
            before = time.perf_counter()
            ticket = ring.submit(images[number % _NUM_IMAGES])
            submit_us.append(1e6 * (time.perf_counter() - before))
            in_flight.append((ticket, number % _NUM_IMAGES))
            if (number + 1) % _BATCHES_PER_SAMPLE == 0:
                free_bytes.append(device.memory_bytes()[0])
        while in_flight:
            collect_oldest(ring, clock)
        seconds = time.perf_counter() - started
        drift = max(free_bytes) - min(free_bytes)
        record(
            frames=num_batches * batch,
            wrong_frames=wrong,
            frames_per_second=round(num_batches * batch / seconds),
            **clock.figures(),
            submit_us_p50_with_copy_to_pinned_memory=round(statistics.median(submit_us), 1),
            memory_drift_bytes=drift,
            notes=list(ring.notes),
        )
    assert wrong == 0, f"{wrong} of {num_batches * batch} frames came back wrong"
    assert drift <= MAX_DRIFT_BYTES, f"free device memory changed by {drift} bytes"


def measure_overhead(
    device: CudaDevice, *, rounds: int = 2000, size_hw: tuple[int, int] = SIZE_HW
) -> float:
    """Measure the host time of submit + collect in microseconds, median; the engine does nothing."""
    layout, samples = ring_layout(1, size_hw), []
    with device.current(), SlotRing(device, layout, lambda slot, count, stream: None) as ring:
        for _ in range(rounds):
            before = time.perf_counter()
            ring.submit(ring.acquire(), num_frames=1)
            submitted = time.perf_counter()
            time.sleep(0.0005)  # the copies end meanwhile, so that collect does not wait for them
            again = time.perf_counter()
            ring.collect()
            samples.append(submitted - before + time.perf_counter() - again)
    return round(1e6 * statistics.median(samples), 1)


def measure_copies(
    device: CudaDevice, record: Record, *, num_bytes: int = 8 * 3 << 19, rounds: int = 50
) -> None:
    """Measure copies of a batch of 8 frames from and to pinned and pageable memory, GB/s, median."""
    with device.current(), ExitStack() as stack:
        pinned, memory = device.pinned_buffer(num_bytes), device.device_buffer(num_bytes)
        stream = device.new_stream()
        for item in (pinned, memory, stream):
            stack.callback(item.free)
        array = np.zeros(num_bytes, np.uint8)
        pageable: Any = SimpleNamespace(array=array, raw=array.ctypes.data)
        for name, host in (("pinned", pinned), ("pageable", pageable)):
            copies = {
                "in": lambda host=host: device.copy_to_device(memory, host, num_bytes, stream),
                "out": lambda host=host: device.copy_to_host(host, memory, num_bytes, stream),
            }
            for direction, copy in copies.items():
                seconds = []
                for _ in range(rounds):
                    started = time.perf_counter()
                    copy()
                    stream.synchronize()
                    seconds.append(time.perf_counter() - started)
                rate = num_bytes / statistics.median(seconds) / 1e9
                record(**{f"{name}_{direction}_gb_per_s": round(rate, 2)})


def check_labels(
    backend: Backend,
    frames: Sequence[np.ndarray],
    references: Mapping[str, Sequence[np.ndarray]],
    record: Record,
) -> None:
    """Compare class ids with those of each reference, pixel by pixel, against ``MIN_AGREEMENT``."""
    labels = [backend.infer(frame[None])[0][0] for frame in frames]
    least, poor = MIN_AGREEMENT[backend.precision], []
    for name, reference in references.items():
        agreement = label_agreement(labels, reference)
        record(**{f"labels_equal_to_{name.replace(' ', '_')}": agreement})
        if agreement < least:
            poor.append(f"{agreement:.3%} of the labels equal {name}, not {least:.1%}")
    assert not poor, "; ".join(poor)


def time_variants(
    variants: Mapping[str, GpuBackend],
    frames: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    record: Record,
    timing: TimingConfig = TIMING,
) -> None:
    """Time ``infer`` of batches of 1 and 8 of several backends in one interleaved run; check their labels.

    Speeds are relative to the first variant.
    """
    batches = {size: [np.stack(frames[:size])] for size in (1, BATCH)}
    workloads = [
        engine_workload(name, backend, batches[size])
        for size in batches
        for name, backend in variants.items()
    ]
    summaries = iter(measure_latency(workloads, timing))
    least, poor = min(MIN_AGREEMENT[b.precision] for b in variants.values()), []
    for size in batches:
        timed = {name: next(summaries) for name in variants}
        first = next(iter(timed.values()))
        for name, summary in timed.items():
            speed = round(first.p50 / summary.p50, 3)
            figures = {"ms_per_batch": round(summary.p50, 3), "speed": speed}
            record(**{f"batch_{size}, {name}": figures})
    for name, backend in variants.items():
        labels = [backend.infer(frame[None])[0][0] for frame in frames]
        agreement = label_agreement(labels, reference)
        record(
            **{
                f"labels_equal_to_cpu_artefact, {name}": agreement,
                f"notes, {name}": list(backend.notes),
            }
        )
        if agreement < least:
            poor.append(f"{name}: {agreement:.3%} of the labels equal the CPU artefact")
    assert not poor, "; ".join(poor)


def time_pipelines(
    pipelines: Mapping[str, Pipeline],
    frames: Sequence[np.ndarray],
    record: Record,
    timing: TimingConfig = TIMING,
    least: float = MIN_AGREEMENT["fp16"],
) -> None:
    """Time pipelines in one interleaved run; at least this share of their labels must equal the reference's.

    ``REFERENCE`` and ``BASELINE`` must be among them.
    """

    def workload(name, run):
        return Workload(
            name=name, scope=END_TO_END, call=lambda index: run(frames[index % len(frames)])
        )

    measured = measure_latency([workload(*item) for item in pipelines.items()], timing)
    summaries = dict(zip(pipelines, measured, strict=True))
    labels = {name: [run(frame) for frame in frames] for name, run in pipelines.items()}
    latency = {
        name: {
            "p50_ms": round(summary.p50, 3),
            "p50_interval_ms": [round(summary.p50_low, 3), round(summary.p50_high, 3)],
            "p99_ms": summary.p99,
            "n": summary.n,
            "fps": round(summary.fps, 1),
            "speed_to_torch_eager_fp16": round(summaries[BASELINE].p50 / summary.p50, 2),
            "labels_equal_to_torch_fp32": label_agreement(labels[name], labels[REFERENCE]),
            "is_stable": summary.is_stable,
        }
        for name, summary in summaries.items()
    }
    record(latency=latency)
    agreements = {name: timed["labels_equal_to_torch_fp32"] for name, timed in latency.items()}
    poor = {name: share for name, share in agreements.items() if share < least}
    assert not poor, f"labels differ from torch fp32, share of equal ones: {poor}"


def check_throughput(
    backend: GpuBackend,
    frames: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    record: Record,
    *,
    timing: TimingConfig = TIMING,
) -> None:
    """Stream batches of 8 from pinned memory and from arrays, and check the labels of the last batch.

    The overlap efficiency is the rate of batches times the slowest stage of a batch that runs alone: 1 if the
    other stages cost nothing. The backend needs ``timing=True``.
    """
    images = np.stack([frames[index % len(frames)] for index in range(BATCH)])
    stages_ms = []
    for _ in range(8 * backend.num_slots):  # every slot captures its graph and holds the frames
        backend.infer(images)
        stages_ms.append(backend.ring.stage_times_ms())
    alone_ms = np.median(stages_ms, axis=0)
    outputs: list[np.ndarray] = []

    def stream():
        with closing(backend.stream(filled_slots(backend, BATCH))) as batches:
            for latest in batches:
                outputs[:] = latest
                yield

    arrays = backend.stream(itertools.repeat(images))
    pinned, host = (
        measure_rate(batches, BATCH, timing, in_flight=backend.num_slots)
        for batches in (stream(), arrays)
    )
    wanted = [reference[index % len(frames)] for index in range(BATCH)]
    agreement, least = label_agreement(list(outputs[0]), wanted), MIN_AGREEMENT[backend.precision]
    efficiency = round(pinned.fps / BATCH * float(alone_ms.max()) / 1e3, 3)
    record(
        batch=BATCH,
        frames_per_second_from_pinned_memory=round(pinned.fps, 1),
        frames_per_second_from_arrays=round(host.fps, 1),
        stages_alone_ms=[round(float(ms), 3) for ms in alone_ms],
        overlap_efficiency=efficiency,
        overlap_efficiency_is_as_expected=efficiency >= EXPECTED_EFFICIENCY,
        labels_equal_to_torch_fp32=agreement,
        notes=list(backend.notes),
    )
    assert agreement >= least, f"{agreement:.3%} of the labels equal torch fp32, not {least:.1%}"


def record_bench(
    path: Path,
    backend: str,
    frames: Sequence[np.ndarray],
    record: Record,
    timing: TimingConfig = TIMING,
) -> None:
    """Time an artefact as ``esnet-bench --batch 1,4,8`` does, and record every scope."""
    frame_set = FrameSet(frames=tuple(frames), description="frames of the GPU check")
    options = BenchOptions(backends=[backend], batches=(1, 4, 8), config=timing)
    for result in bench_models([path], frame_set, options).results:
        scopes = {
            scope: {"ms_per_batch": round(timed.p50, 3), "fps": round(timed.fps, 1)}
            for scope, timed in result.scopes.items()
        }
        record(**{f"batch_{result.batch}": scopes})


def ring_layout(batch: int, size_hw: tuple[int, int]) -> SlotLayout:
    """Lay out slots for frames uint8 (N, H, W, 3) and labels uint8 (N, H, W)."""
    uint8 = np.dtype(np.uint8)
    return SlotLayout(
        input=TensorSpec(name="frames", dtype=uint8, shape=(None, *size_hw, 3)),
        outputs=(TensorSpec(name="labels", dtype=uint8, shape=(None, *size_hw)),),
        max_batch=batch,
    )


def copy_engine(copy: DeviceCopy, plane: int) -> Enqueue:
    """Make an engine whose labels are the first H x W bytes of a frame; ``plane`` is H x W."""

    def enqueue(slot, count, stream):
        source, target = slot.input_buffer.address, slot.output_buffers[0].address
        for index in range(count):
            copy(target + index * plane, source + index * plane * 3, plane, stream.handle)

    return enqueue
