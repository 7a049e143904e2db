"""What only a GPU can prove, stage by stage: ``scripts/gpu_check.sh --out DIR``.

Every stage writes its own JSON, so that a run that was cut off goes on where it stopped. A stage that lacks a
library says so; a stage that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe_environment
from benchmarks.frames import load_frames
from benchmarks.timing.statistics import summarize
from esnet.metrics import label_agreement
from runtime.backends.base import TensorSpec
from runtime.cuda.device import CUDA_LIBRARIES, CudaDevice, Stream, open_device
from runtime.cuda.ring import Slot, SlotLayout, SlotRing
from runtime.errors import EsnetError
from runtime.files import atomic_path

SIZE_HW = (512, 1024)
_STRESS_FRAMES = {"full": 10_000, "quick": 400}
_TIMED_SECONDS = {"full": 4.0, "quick": 0.5}
_LATE_BATCHES = 50  # memory must be flat after so many


class Skipped(Exception):
    """The stage lacks something; its message says what."""


def main() -> None:
    """Run the stages that are not done yet, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument(
        "--data", type=Path, help="frames: image folder or video; default: generated scenes"
    )
    parser.add_argument("--weights", default="camvid", help="checkpoint, or shipped weights")
    parser.add_argument("--only", action="append", help="stage to run; may be given several times")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work, to see that it runs"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.length = "quick" if options.quick else "full"
    results: dict[str, Any] = {}
    for name, stage in STAGES.items():
        path = options.out / f"stage_{name}.json"
        if path.is_file():
            results[name] = json.loads(path.read_text())
            continue
        if options.only and name not in options.only:
            continue
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        results[name] = _outcome(stage, options)
        results[name]["seconds"] = round(time.perf_counter() - started, 1)
        print(json.dumps(results[name], indent=1), flush=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(results[name], indent=1) + "\n")
    report = {"environment": describe_environment(), "stages": results}
    with atomic_path(options.out / "gpu_check.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    with atomic_path(options.out / "gpu_check.md") as temporary:
        temporary.write_text(markdown(report))
    sys.exit(1 if any(result["status"] == "failed" for result in results.values()) else 0)


def _outcome(
    stage: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    try:
        return {"status": "ok", **stage(options)}
    except (Skipped, ImportError) as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:  # the other stages are worth having; this one's reason is kept
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}


def check_devices(options: argparse.Namespace) -> dict[str, Any]:
    """Open the GPU with each CUDA library and copy a pattern there and back."""
    found: dict[str, Any] = {}
    for library in CUDA_LIBRARIES:
        try:
            device = open_device(library)
        except EsnetError as error:
            found[library] = str(error)
            continue
        with device_closed(device), device.current():
            host, back, memory = (
                device.pinned_buffer(1 << 20),
                device.pinned_buffer(1 << 20),
                device.device_buffer(1 << 20),
            )
            stream = device.new_stream()
            host.array[:] = np.arange(1 << 20, dtype=np.uint32).astype(np.uint8)
            device.copy_to_device(memory, host, 1 << 20, stream)
            device.copy_to_host(back, memory, 1 << 20, stream)
            stream.synchronize()
            found[library] = {
                "gpu": device.name,
                "sm": f"{device.sm[0]}.{device.sm[1]}",
                "copied": bool((host.array == back.array).all()),
            }
    if not any(isinstance(value, dict) for value in found.values()):
        raise Skipped("; ".join(map(str, found.values())))
    return {"libraries": found}


def check_ring(options: argparse.Namespace) -> dict[str, Any]:
    """Send thousands of frames through the ring and compare each one; memory must stay flat."""
    results: dict[str, Any] = {}
    for library in CUDA_LIBRARIES:
        for batch in (1, 8):
            for use_graphs in (True, False):
                try:
                    device = open_device(library)
                except EsnetError as error:
                    results[library] = str(error)
                    break
                name = f"{library}, batch {batch}, {'graphs' if use_graphs else 'no graphs'}"
                with device_closed(device):
                    results[name] = _stress(
                        device, batch, use_graphs, _STRESS_FRAMES[options.length]
                    )
    if not any(isinstance(value, dict) for value in results.values()):
        raise Skipped("; ".join(map(str, results.values())))
    wrong = [name for name, value in results.items() if isinstance(value, dict) and value["wrong"]]
    if wrong:
        raise RuntimeError(f"wrong frames came back: {wrong}")
    return {"runs": results}


def _stress(device: CudaDevice, batch: int, use_graphs: bool, frames: int) -> dict[str, Any]:
    """Copy frames through the device; what comes back must be the first plane of what went in."""
    layout = _layout(batch)
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (16, batch, *SIZE_HW, 3), np.uint8)
    expected = pictures.reshape(16, batch, -1)[:, :, : SIZE_HW[0] * SIZE_HW[1]]
    copy = device_copy()

    def enqueue(slot: Slot, num_frames: int, stream: Stream) -> None:
        # The frames lie densely in the input: each one's first plane-sized part is its answer.
        for index in range(num_frames):
            copy(
                slot.output_buffers[0].address + index * SIZE_HW[0] * SIZE_HW[1],
                slot.input_buffer.address + index * SIZE_HW[0] * SIZE_HW[1] * 3,
                SIZE_HW[0] * SIZE_HW[1],
                stream.handle,
            )

    wrong, free_bytes, overhead, stages = 0, [], [], 0.0
    with (
        device.current(),
        SlotRing(device, layout, enqueue, use_graphs=use_graphs, timing=True) as ring,
    ):
        tickets: list[tuple[int, int]] = []
        started = time.perf_counter()
        total = max(frames // batch, _LATE_BATCHES * 2)
        for number in range(total):
            if ring.free_slots == 0:
                wrong += _collect_one(ring, tickets, expected)
                stages += sum(ring.stage_times_ms())
            before = time.perf_counter_ns()
            ticket = ring.submit(pictures[number % 16])
            overhead.append((time.perf_counter_ns() - before) / 1e3)
            tickets.append((ticket, number % 16))
            if number % _LATE_BATCHES == _LATE_BATCHES - 1:
                free_bytes.append(device.memory_bytes()[0])
        while tickets:
            wrong += _collect_one(ring, tickets, expected)
            stages += sum(ring.stage_times_ms())
        seconds = time.perf_counter() - started
        notes = list(getattr(ring, "notes", []))
    return {
        "frames": total * batch,
        "wrong": wrong,
        "frames_per_second": round(total * batch / seconds),
        "stage_times_over_wall_time": round(stages / 1e3 / seconds, 2),
        "memory_drift_bytes": int(max(free_bytes[1:]) - min(free_bytes[1:]))
        if len(free_bytes) > 1
        else 0,
        "submit_us_p50_with_the_copy_into_pinned_memory": round(statistics.median(overhead), 1),
        "notes": notes,
    }


def _collect_one(ring: SlotRing, tickets: list[tuple[int, int]], expected: np.ndarray) -> int:
    ticket, index = tickets.pop(0)
    (labels,) = ring.collect(ticket)
    return int(not np.array_equal(labels.reshape(len(labels), -1), expected[index]))


def check_overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Host time of submit + collect around an engine that does nothing, frames in pinned memory."""
    device = _first_device()
    with (
        device_closed(device),
        device.current(),
        SlotRing(device, _layout(1), lambda slot, count, stream: None) as ring,
    ):
        samples = []
        for _ in range(2000):
            ring.next_input()
            before = time.perf_counter_ns()
            ticket = ring.submit(num_frames=1)
            after = time.perf_counter_ns()
            time.sleep(0.0005)  # the copies are done: what is left is the host's own work
            again = time.perf_counter_ns()
            ring.collect(ticket)
            samples.append((after - before + time.perf_counter_ns() - again) / 1e6)
    summary = summarize(samples)
    return {"library": device.library, "submit_and_collect_us_p50": round(1e3 * summary.p50, 1)}


def check_onnxruntime(options: argparse.Namespace) -> dict[str, Any]:
    """Our ONNX Runtime CUDA path against torch and plain ONNX Runtime CUDA: parity, latency, throughput."""
    import torch

    from benchmarks import gpu_peers

    if not torch.cuda.is_available():
        raise Skipped("torch sees no GPU")
    frames = load_frames(options.data, SIZE_HW)
    return gpu_peers.compare(
        options.weights, frames, options.out, seconds=_TIMED_SECONDS[options.length]
    )


def check_tensorrt(options: argparse.Namespace) -> dict[str, Any]:
    """Build and run an engine with each TensorRT that is installed, and compare it with torch."""
    from benchmarks import gpu_peers
    from runtime.tensorrt_api import installed_kinds

    if not installed_kinds():
        raise Skipped("no TensorRT is installed")
    frames = load_frames(options.data, SIZE_HW)
    results: dict[str, Any] = {}
    for kind in installed_kinds():
        try:
            results[kind] = gpu_peers.engine_run(
                kind, options.weights, frames, options.out, seconds=_TIMED_SECONDS[options.length]
            )
        except Exception as error:  # an engine that this GPU refuses is a result too
            results[kind] = f"{type(error).__name__}: {error}"
    if not any(isinstance(value, dict) for value in results.values()):
        raise Skipped("; ".join(f"{kind}: {value}" for kind, value in results.items()))
    return {"kinds": results}


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "devices": check_devices,
    "ring": check_ring,
    "overhead": check_overhead,
    "onnxruntime": check_onnxruntime,
    "tensorrt": check_tensorrt,
}


@contextmanager
def device_closed(device: CudaDevice) -> Iterator[CudaDevice]:
    """Close a device at the end of a block."""
    try:
        yield device
    finally:
        device.close()


def device_copy() -> Callable[[int, int, int, int], None]:
    """Get the driver's device-to-device copy: target, source, bytes, stream."""
    driver = ctypes.CDLL("libcuda.so.1")

    def copy(target: int, source: int, num_bytes: int, stream: int) -> None:
        status = driver.cuMemcpyDtoDAsync_v2(
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(num_bytes),
            ctypes.c_void_p(stream),
        )
        if status:
            raise RuntimeError(f"cuMemcpyDtoDAsync returned {status}")

    return copy


def markdown(report: dict[str, Any]) -> str:
    """Write the report for people."""
    lines = ["# GPU check", ""]
    lines += [f"- {key}: {value}" for key, value in report["environment"].items()]
    for name, result in report["stages"].items():
        rest = {key: value for key, value in result.items() if key not in ("status", "seconds")}
        lines += ["", f"## {name}: {result['status']} ({result.get('seconds', '?')} s)", ""]
        lines += ["```json", json.dumps(rest, indent=1), "```"]
    return "\n".join(lines) + "\n"


def _layout(batch: int) -> SlotLayout:
    height, width = SIZE_HW
    uint8 = np.dtype(np.uint8)
    return SlotLayout(
        input=TensorSpec(name="frames", dtype=uint8, shape=(None, height, width, 3)),
        outputs=(TensorSpec(name="labels", dtype=uint8, shape=(None, height, width)),),
        max_batch=batch,
    )


def _first_device() -> CudaDevice:
    try:
        return open_device()
    except EsnetError as error:
        raise Skipped(str(error)) from error


__all__ = ["label_agreement", "main"]

if __name__ == "__main__":
    main()
