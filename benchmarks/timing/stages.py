"""Where the time of one frame goes, from its file to its overlay, and what would shrink each part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from benchmarks.frames import FrameDecoder, FrameSet
from runtime.artefact.card import FRAMES, LOGITS, ModelCard
from runtime.media.frames import batch_from_frames, resize_frame, resize_map
from runtime.segmenter import Segmenter

DECODE, RESIZE, PREPARE, COPY_IN, ENGINE = "decode", "resize", "prepare", "copy in", "engine"
COPY_OUT, UPSCALE, OVERLAY, OTHER = "copy out", "upscale", "overlay", "other"
_ROUNDS = 32
_WORTH_A_HINT = 0.10
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One part of a frame's way."""

    name: str
    """What is done."""
    ms: float
    """Median time, milliseconds."""
    share: float
    """Of the whole, 0 to 1."""
    hint: str
    """What would shrink it; empty where it does not matter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageBreakdown:
    """All parts of a frame's way, in order."""

    stages: tuple[Stage, ...]
    """The parts; ``other`` is what none of them accounts for."""
    total_ms: float
    """Median time of the whole, one frame after the other."""
    decoded: str
    """What was decoded."""


def measure_stages(segmenter: Segmenter, frames: FrameSet, rounds: int = _ROUNDS) -> StageBreakdown:
    """Take frames through all stages, one at a time, with a clock between them.

    Args:
        segmenter: An open artefact; one on a GPU must have been opened with ``timing``.
        frames: What is decoded: the encoded frames of its source, or JPEGs of generated ones.
        rounds: Frames to take; two more warm up.
    """
    decoder = FrameDecoder(frames)
    laps = [_walk(segmenter, decoder) for _ in range(rounds + 2)][2:]
    names = list(laps[0][0])
    total = float(np.median([wall for _, wall in laps]))
    medians = {name: float(np.median([times[name] for times, _ in laps])) for name in names}
    medians[OTHER] = max(0.0, total - sum(medians.values()))
    stages = []
    for name, ms in medians.items():
        share = ms / total if total else 0.0
        hint = _hint(name, segmenter, decoder) if share >= _WORTH_A_HINT else ""
        stages.append(Stage(name=name, ms=ms, share=share, hint=hint))
    return StageBreakdown(stages=tuple(stages), total_ms=total, decoded=decoder.description)


def _walk(segmenter: Segmenter, decoder: FrameDecoder) -> tuple[dict[str, float], float]:
    """Take one frame all the way; get its times by stage, and the whole, in milliseconds."""
    card, backend = segmenter.card, segmenter.backend
    watch = _Stopwatch()
    image = watch.lap(DECODE, decoder.next)
    small = watch.lap(RESIZE, lambda: resize_frame(image, card.size_hw))
    batch = watch.lap(
        PREPARE,
        lambda: np.ascontiguousarray(batch_from_frames([small], card)),
    )
    ring = getattr(backend, "ring", None)
    if ring is None:
        outputs = watch.lap(ENGINE, lambda: backend.infer(batch))
    else:
        started = time.perf_counter()
        outputs = backend.infer(batch)
        host_ms = (time.perf_counter() - started) * 1e3
        copy_in, engine, copy_out = ring.stage_times_ms()
        # What the device does not account for is the host's copy to page-locked memory and back.
        watch.times[PREPARE] += max(0.0, host_ms - copy_in - engine - copy_out)
        watch.times |= {COPY_IN: copy_in, ENGINE: engine, COPY_OUT: copy_out}
    size_hw = (image.shape[0], image.shape[1])

    def upscale() -> np.ndarray:
        first = outputs[0][0]
        labels = first.argmax(0).astype(np.uint8) if card.outputs[0] == LOGITS else first
        return resize_map(labels, size_hw)

    labels = watch.lap(UPSCALE, upscale)
    watch.lap(OVERLAY, lambda: segmenter.overlay(image, labels, legend=False))
    return watch.times, watch.total_ms


class _Stopwatch:
    """Times one step after the other, and the whole."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._started = time.perf_counter()

    def lap(self, name: str, step: Callable[[], _T]) -> _T:
        started = time.perf_counter()
        result = step()
        self.times[name] = (time.perf_counter() - started) * 1e3
        return result

    @property
    def total_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1e3


def _hint(name: str, segmenter: Segmenter, decoder: FrameDecoder) -> str:
    """Say what would shrink a stage that matters."""
    card, backend = segmenter.card, segmenter.backend
    height, width = card.size_hw
    hints = {
        DECODE: "esnet-segment decodes ahead in a thread; a camera that gives raw frames needs none",
        RESIZE: f"let the camera give {width}x{height}, or export with its --size",
        PREPARE: ""
        if card.input == FRAMES
        else "export with --input frames: bytes in, scaled inside",
        COPY_IN: ""
        if card.input == FRAMES
        else "export with --input frames: a quarter of the bytes",
        COPY_OUT: "export with --output labels: a byte a pixel" if LOGITS in card.outputs else "",
        UPSCALE: f"export with --size {_usual_size(decoder)}"
        if LOGITS not in card.outputs
        else "export with --output labels: no argmax on the host",
        OVERLAY: "esnet-segment --draw labels writes the class map alone",
        ENGINE: _engine_hint(card, backend.name, backend.precision),
    }
    return hints.get(name, "")


def _engine_hint(card: ModelCard, backend: str, precision: str) -> str:
    if precision == "fp32" and backend == "openvino":
        return "--precision bf16 where the CPU has it, or esnet-export quantize"
    if precision in ("fp32", "bf16") and backend in ("openvino", "onnxruntime"):
        return "esnet-export quantize"
    if precision == "fp32" and backend.startswith("tensorrt"):
        return "esnet-export build-engine --fp16 (Turing and later) or --int8"
    return "" if precision in ("int8", "fp16") else f"a smaller --size than {card.size_hw}"


def _usual_size(decoder: FrameDecoder) -> str:
    height, width = decoder.next().shape[:2]
    return f"{round(height / 8) * 8}x{round(width / 8) * 8}"
