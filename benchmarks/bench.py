"""``esnet-bench``'s first mode: latency of artefacts, engine and end to end, against the published target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe_environment, peak_memory_bytes
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet
from benchmarks.latency import END_TO_END, ENGINE, Protocol, Subject, cycle, measure_latency
from benchmarks.statistics import Summary, label_agreement
from runtime.backend import identify_artefact
from runtime.files import sha256_of
from runtime.frames import batch_from_frames
from runtime.segmenter import Segmenter

TARGET_FPS = 63.0
TARGET_SOURCE = "published for a GTX 1080 Ti with PyTorch, arXiv 1906.09826"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResult:
    """One model on one backend at one precision."""

    model: str
    """File name."""
    sha256: str
    """Hash of the file that was timed."""
    name: str
    """For tables: what tells it from the others."""
    backend: str
    """Backend that ran it."""
    precision: str
    """Arithmetic that really ran."""
    device: str
    """What it ran on."""
    size_hw: tuple[int, int]
    """Input size of the artefact."""
    engine: Summary
    """Batch of one in the artefact's own form in, its outputs on the host out."""
    end_to_end: Summary
    """Decoded frame in, class map of the frame's size out."""
    agreement: float
    """Share of pixels labelled as the first model labels them, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """What ``esnet-bench`` found."""

    results: tuple[ModelResult, ...]
    """One for each model, backend and precision."""
    frames: str
    """What was timed on."""
    protocol: Protocol
    """When measuring stopped."""
    environment: dict[str, str]
    """Where and with what."""
    target_fps: float
    """Rate to reach."""
    peak_memory_bytes: int
    """Largest resident size of the process."""

    @property
    def target_ms(self) -> float:
        """Time a frame may take."""
        return 1e3 / self.target_fps

    def meets_target(self, result: ModelResult) -> bool:
        """Tell whether even the upper end of the median's interval, end to end, is fast enough."""
        return result.end_to_end.p50_high <= self.target_ms

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        verdicts = [self.meets_target(result) for result in self.results]
        return {
            "schema": 1,
            "mode": "latency",
            **dataclasses.asdict(self),
            "meets_target": verdicts,
        }


def bench_models(
    models: Sequence[Path],
    frames: FrameSet,
    *,
    backends: Sequence[str | None] = (None,),
    precisions: Sequence[str | None] = (None,),
    protocol: Protocol | None = None,
    target_fps: float = TARGET_FPS,
    on_turn: Callable[[Subject, float], None] = lambda subject, share: None,
    on_open: Callable[[Segmenter], None] = lambda segmenter: None,
) -> BenchReport:
    """Time every model on every backend at every precision, interleaved.

    Args:
        models: Artefacts.
        frames: What they are timed on.
        backends: Names; ``None`` is the fastest that is installed.
        precisions: Names; ``None`` is the artefact's own. INT8 and engines have no other.
        protocol: When to stop.
        target_fps: Rate to hold the end-to-end median against.
        on_turn: Told of progress.
        on_open: Told of each model that was opened.

    Raises:
        ModelFileError: A model cannot be opened.
        InvalidInput: A backend or precision is not to be had.
        BenchmarkError: A target that is not positive.
    """
    if target_fps <= 0:
        raise BenchmarkError(f"the target must be above 0 frames a second, got {target_fps}")
    environment = describe_environment()
    protocol = protocol or Protocol()
    with ExitStack() as stack:
        opened: list[tuple[Path, Segmenter]] = []
        for path in models:
            card, builder = identify_artefact(path)
            # INT8 and engines have their precision in them: there is nothing to choose.
            is_fixed = card.precision == "int8" or builder is not None
            for backend in backends:
                for precision in [None] if is_fixed else precisions:
                    segmenter = Segmenter.open(path, backend=backend, precision=precision)
                    opened.append((path, stack.enter_context(segmenter)))
                    on_open(segmenter)
        names = _names(opened)
        subjects = [
            subject
            for name, (_, segmenter) in zip(names, opened, strict=True)
            for subject in _subjects(name, segmenter, frames)
        ]
        summaries = measure_latency(subjects, protocol, on_turn=on_turn)
        labels = [_labels(segmenter, frames) for _, segmenter in opened]
        results = tuple(
            ModelResult(
                model=path.name,
                sha256=sha256_of(path),
                name=names[index],
                backend=segmenter.backend.name,
                precision=segmenter.backend.precision,
                device=segmenter.backend.device,
                size_hw=segmenter.card.size_hw,
                engine=summaries[2 * index],
                end_to_end=summaries[2 * index + 1],
                agreement=label_agreement(labels[index], labels[0]),
            )
            for index, (path, segmenter) in enumerate(opened)
        )
    return BenchReport(
        results=results,
        frames=frames.description,
        protocol=protocol,
        environment=environment,
        target_fps=target_fps,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _names(opened: Sequence[tuple[Path, Segmenter]]) -> list[str]:
    """Name each subject by backend and the precision it runs at, and by its file if there are several."""
    is_one_file = len({path for path, _ in opened}) == 1
    return [
        ("" if is_one_file else f"{path.stem}, ")
        + f"{segmenter.backend.name} {segmenter.backend.precision}"
        for path, segmenter in opened
    ]


def _subjects(name: str, segmenter: Segmenter, frames: FrameSet) -> tuple[Subject, Subject]:
    """Make the two scopes of a model: prepared batches into the backend, and frames into the segmenter."""
    card, dtype = segmenter.card, segmenter.backend.input.dtype
    low = card.batch[0]
    batches = cycle(
        [
            np.ascontiguousarray(batch_from_frames([frame] * low, card, dtype=dtype))
            for frame in frames.frames
        ]
    )
    pictures = cycle(frames.frames)
    return (
        Subject(name=name, scope=ENGINE, call=lambda i: segmenter.backend.infer(batches(i))),
        Subject(name=name, scope=END_TO_END, call=lambda i: segmenter.segment(pictures(i))),
    )


def _labels(segmenter: Segmenter, frames: FrameSet) -> list[np.ndarray]:
    return [segmenter.segment(frame) for frame in frames.frames]
