"""Stage breakdown from the encoded file to the overlay, with hints to reduce each stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from benchmarks.frames import FrameSet
from benchmarks.models import class_map
from benchmarks.scopes import ENGINE
from runtime.artefact.card import FRAMES, LOGITS
from runtime.media.frames import batch_from_frames, resize_frame, resize_map
from runtime.segmenter import Segmenter
from runtime.trials import Candidate, cached_times

DECODE, RESIZE, PREPARE, COPY_IN = "decode", "resize", "prepare", "copy in"
COPY_OUT, UPSCALE, OVERLAY, OTHER = "copy out", "upscale", "overlay", "other"
STAGES = (DECODE, RESIZE, PREPARE, COPY_IN, ENGINE, COPY_OUT, UPSCALE, OVERLAY, OTHER)
"""All stages in order; a CPU has no copies."""
_MIN_SHARE_FOR_HINT = 0.10


@dataclass(frozen=True, kw_only=True, slots=True)
class StageBreakdown:
    """Times of all stages of processing a batch, per frame."""

    batch: int
    """Frames of the batch."""
    stages_ms: dict[str, float]
    """Median milliseconds by stage, in order; ``other`` is the total less the medians of all stages."""
    hints: dict[str, str]
    """Ways to reduce the long stages, by stage."""
    total_ms: float
    """Median total time per frame, milliseconds."""


def measure_stages(
    segmenter: Segmenter, frames: FrameSet, batch: int = 1, rounds: int = 32
) -> StageBreakdown:
    """Time each stage of ``rounds`` batches, one at a time, after two warm-up batches.

    On a GPU, the segmenter must be opened with ``timing``. Generated frames are decoded from JPEGs.
    """
    images = frames.decode_again()
    rows = [_time_batch(segmenter, images, batch) for _ in range(rounds + 2)][2:]
    stages_ms = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    total_ms = float(np.median([sum(row.values()) for row in rows]))
    stages_ms[OTHER] = max(0.0, total_ms - sum(stages_ms.values()))
    return StageBreakdown(
        batch=batch,
        stages_ms=stages_ms,
        hints={
            name: hint
            for name, hint in _hints(segmenter, next(images)).items()
            if stages_ms.get(name, 0.0) >= _MIN_SHARE_FOR_HINT * total_ms
        },
        total_ms=total_ms,
    )


def _time_batch(segmenter: Segmenter, images: Iterator[np.ndarray], size: int) -> dict[str, float]:
    """Process one batch and return the milliseconds of each stage per frame."""
    card, backend = segmenter.card, segmenter.backend
    times: dict[str, float] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[name], last = (now - last) * 1e3 / size, now

    frames = list(islice(images, size))
    lap(DECODE)
    resized = [resize_frame(frame, card.size_hw) for frame in frames]
    lap(RESIZE)
    batch = batch_from_frames(resized, card)
    lap(PREPARE)
    outputs = backend.infer(batch)
    lap(ENGINE)
    if (ring := getattr(backend, "ring", None)) is not None:
        copy_in, engine, copy_out = (ms / size for ms in ring.stage_times_ms())
        # The rest of the host time is the copy to and from pinned memory.
        times[PREPARE] += max(0.0, times.pop(ENGINE) - copy_in - engine - copy_out)
        times |= {COPY_IN: copy_in, ENGINE: engine, COPY_OUT: copy_out}
    maps = [
        resize_map(class_map(output, card), (frame.shape[0], frame.shape[1]))
        for output, frame in zip(outputs[0], frames, strict=True)
    ]
    lap(UPSCALE)
    for frame, labels in zip(frames, maps, strict=True):
        segmenter.overlay(frame, labels, legend=False)
    lap(OVERLAY)
    return times


def _hints(segmenter: Segmenter, image: np.ndarray) -> dict[str, str]:
    """Return ways to reduce each stage."""
    card = segmenter.card
    height, width = card.size_hw
    native = f"{round(image.shape[0] / 8) * 8}x{round(image.shape[1] / 8) * 8}"
    hints = {
        DECODE: "esnet-segment decodes in a separate thread; raw camera frames need no decoding",
        RESIZE: f"use {width}x{height} frames, or export with the --size of the frames",
        ENGINE: _engine_hint(segmenter),
        UPSCALE: f"export with --size {native}",
        OVERLAY: "esnet-segment --draw labels writes class maps without overlay",
    }
    if card.input != FRAMES:
        hints[PREPARE] = "export with --input frames: uint8 input, normalised in the graph"
        hints[COPY_IN] = "export with --input frames: a quarter of the bytes"
    if LOGITS in card.outputs:
        hints[COPY_OUT] = "export with --output labels: one byte per pixel"
        hints[UPSCALE] = "export with --output labels: no argmax on the host"
    return hints


def _engine_hint(segmenter: Segmenter) -> str:
    backend, precision = segmenter.backend.name, segmenter.backend.precision
    times_ms = cached_times("fp32")
    fp32, bf16 = (times_ms.get(Candidate("openvino", name)) for name in ("fp32", "bf16"))
    if precision == "fp32" and backend == "openvino" and fp32 and bf16 and bf16 < fp32:
        return f"--precision bf16 ({fp32 / bf16:.1f}x in the trial here), or esnet-export quantize"
    if precision in ("fp32", "bf16") and backend in ("openvino", "onnxruntime"):
        return "esnet-export quantize"
    if precision == "fp32" and backend.startswith("tensorrt"):
        return "esnet-export build-engine --fp16 (Turing and later) or --int8"
    return "" if precision in ("int8", "fp16") else "export with a smaller --size"
