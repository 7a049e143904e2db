"""The same weights on one GPU by other routes, host frame in, host class map out: for the GPU check."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baselines.pipelines import (
    Pipeline,
    backend_pipeline,
    plain_onnx_pipeline,
    torch_pipeline,
)
from benchmarks.frames import FrameSet
from benchmarks.timing.latency import END_TO_END, TimingConfig, Workload, cycle, measure_latency
from esnet.checkpoint import load_checkpoint
from esnet.metrics import label_agreement
from export.engine.build import build_engine
from export.engine.trt_builder import BuildOptions
from export.plan import ExportPlan
from export.to_onnx import export_onnx
from runtime.artefact.card import ModelCard
from runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from runtime.backends.tensorrt import TensorRtBackend
from runtime.errors import EsnetError

_SIZE_HW = (512, 1024)
_BATCH = 8
_CUDA = "CUDAExecutionProvider"


def compare(weights: str, frames: FrameSet, folder: Path, *, seconds: float) -> dict[str, Any]:
    """Time torch, plain ONNX Runtime CUDA and our own path in one interleaved run.

    Returns:
        By route: median, interval, FPS, ratio to torch eager fp16, labels equal to torch fp32; and for our
        own path throughput at batch 8.
    """
    routes: dict[str, Pipeline] = {
        "torch eager fp32": torch_pipeline(load_checkpoint(weights), device="cuda"),
        "torch eager fp16": torch_pipeline(
            load_checkpoint(weights), device="cuda", dtype=torch.float16, channels_last=True
        ),
        "torch.compile fp16": torch_pipeline(
            load_checkpoint(weights),
            device="cuda",
            dtype=torch.float16,
            channels_last=True,
            compiled=True,
        ),
        "plain ONNX Runtime CUDA": plain_onnx_pipeline(
            load_checkpoint(weights), _SIZE_HW, folder / "plain.onnx", provider=_CUDA
        ),
    }
    opened, notes = [], []
    for precision in ("fp32", "fp16"):
        path = _artefact(weights, folder, precision)
        try:
            card = ModelCard.from_file(path)
            backend = OnnxRuntimeCudaBackend(path, card, timing=True)
        except EsnetError as error:
            notes.append(f"ours {precision}: {error}")
            continue
        opened.append((precision, backend))
        routes[f"ours, ONNX Runtime CUDA {precision}"] = backend_pipeline(backend)
    try:
        measured = _timed(routes, frames, seconds)
        rates = {precision: _throughput(backend, frames, seconds) for precision, backend in opened}
    finally:
        for _, backend in opened:
            backend.close()
    return {"latency": measured, "throughput": rates, "notes": notes}


def engine_run(
    kind: str, weights: str, frames: FrameSet, folder: Path, *, seconds: float
) -> dict[str, Any]:
    """Build an fp16 engine with one TensorRT, and time it beside torch eager fp16."""
    artefact = _artefact(weights, folder, "fp32")
    plan = BuildOptions(precision="fp16", tensorrt=kind)
    report = build_engine(artefact, None, plan, command=["gpu-check"], force=True)
    with TensorRtBackend(report.path, report.record.card, timing=True) as backend:
        routes = {
            "torch eager fp32": torch_pipeline(load_checkpoint(weights), device="cuda"),
            "torch eager fp16": torch_pipeline(
                load_checkpoint(weights), device="cuda", dtype=torch.float16, channels_last=True
            ),
            f"ours, {kind} fp16": backend_pipeline(backend),
        }
        return {
            "kernels": dict(report.record.kernels),
            "latency": _timed(routes, frames, seconds),
            "throughput": _throughput(backend, frames, seconds),
        }


def _timed(routes: dict[str, Pipeline], frames: FrameSet, seconds: float) -> dict[str, Any]:
    pictures = cycle(frames.frames)
    subjects = [
        Workload(name=name, scope=END_TO_END, call=lambda i, route=route: route(pictures(i)))  # type: ignore[misc]
        for name, route in routes.items()
    ]
    summaries = measure_latency(
        subjects, TimingConfig(min_seconds=seconds / 2, cap_seconds=seconds)
    )
    labels = {name: [route(frame) for frame in frames.frames] for name, route in routes.items()}
    reference = summaries[list(routes).index("torch eager fp16")].p50
    return {
        name: {
            "p50_ms": round(summary.p50, 3),
            "p50_interval_ms": [round(summary.p50_low, 3), round(summary.p50_high, 3)],
            "p99_ms": summary.p99,
            "n": summary.n,
            "fps": round(summary.fps, 1),
            "speed_to_torch_eager_fp16": round(reference / summary.p50, 2),
            "labels_equal_to_torch_fp32": round(
                label_agreement(labels[name], labels["torch eager fp32"]), 5
            ),
            "is_stable": summary.is_stable,
        }
        for name, summary in zip(routes, summaries, strict=True)
    }


def _throughput(backend: Any, frames: FrameSet, seconds: float) -> dict[str, Any]:
    """Keep the ring full with batches of eight for a while."""
    count = min(_BATCH, backend.card.batch[2])
    batch = np.stack([frames.frames[i % len(frames.frames)] for i in range(count)])
    for _ in range(4):  # every slot warm, every graph captured
        backend.infer(batch)
    in_flight, done, stages, started = 0, 0, 0.0, time.perf_counter()
    while in_flight or time.perf_counter() - started < seconds:
        is_time_up = time.perf_counter() - started >= seconds
        if in_flight == backend.ring.num_slots or is_time_up:
            backend.collect()
            stages += sum(backend.ring.stage_times_ms())
            in_flight -= 1
            done += 1
        if not is_time_up:
            backend.submit(batch)
            in_flight += 1
    wall = time.perf_counter() - started
    return {
        "batch": count,
        "frames_per_second": round(done * count / wall, 1),
        "ms_per_batch": round(1e3 * wall / done, 3),
        "stage_times_over_wall_time": round(stages / 1e3 / wall, 2),
        "notes": list(getattr(backend.ring, "notes", [])),
    }


def _artefact(weights: str, folder: Path, precision: str) -> Path:
    path = folder / f"check_{precision}.onnx"
    if not path.is_file():
        plan = ExportPlan(size_hw=_SIZE_HW, precision=precision, optimized_for="tensorrt")
        export_onnx(weights, path, plan, verify=False)
    return path
