"""What became of the frames of a source, and how long each stage took."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import SourceLost
from runtime.media.frame_source import Gap


class Statistics:
    """Counts results and the durations of their stages, in memory that does not grow with their number."""

    def __init__(self, target_fps: float | None = None) -> None:
        """Start a count.

        Args:
            target_fps: Rate of the results below which one counts as a miss.
        """
        self.count = self.misses = 0
        self._limit = 1 / target_fps if target_fps else math.inf
        self._last = math.inf
        self._counts: dict[str, Counter[float]] = defaultdict(Counter)

    def add(self, stages: Mapping[str, float]) -> None:
        """Count a result that was written now, with the duration of each stage, ms."""
        now = time.perf_counter()
        self.count += 1
        self.misses += now - self._last > self._limit
        self._last = now
        for stage, ms in stages.items():
            self._counts[stage][float(f"{ms:.3g}")] += 1

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """Get p50 and p95 of each stage, ms, by nearest rank."""
        return {stage: (_rank(of, 0.5), _rank(of, 0.95)) for stage, of in self._counts.items()}


def _rank(counts: Counter[float], share: float) -> float:
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            break
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentReport:
    """Result of ``segment_source``."""

    output: Path | None
    """File or folder that was written; ``None`` if there is none."""
    num_frames: int
    """Frames segmented."""
    seconds: float
    """Wall time, including decoding and writing, without opening the model."""
    backend: str
    """Backend, precision and device."""
    skipped: tuple[str, ...]
    """One line for each frame that could not be read."""
    drops: int
    """Frames of a live source that were replaced by a newer one, or arrived damaged."""
    gaps: tuple[Gap, ...]
    """Times without frames of a live source."""
    stages: dict[str, tuple[float, float]]
    """p50 and p95 of each stage, ms: read, wait (for a batch and a slot), infer, draw, write; for a live
    source also the age of the result after ``infer``."""
    target_fps: float | None
    """Rate asked for."""
    misses: int
    """Results that came later after the one before than the rate asked for allows."""
    is_cut_short: bool
    """True if a signal, or the user at the window, ended a source that is not live."""
    lost: SourceLost | None
    """Why a live source ended; the results before it were written."""
    warnings: tuple[str, ...]
    """Non-fatal warnings."""

    @property
    def exit_code(self) -> int:
        """0, or 1 if frames are missing."""
        return 1 if self.skipped or self.is_cut_short else 0

    def as_text(self) -> str:
        """Summarize in a few lines."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for reason in self.skipped:
            yield f"skipped: {reason}"
        for gap in self.gaps:
            yield f"gap: {gap.seconds:.1f} s from {gap.start:.1f} s on: {gap.reason}"
        rate = self.num_frames / self.seconds if self.seconds else 0.0
        yield (
            f"{frames_text(self.num_frames)} in {self.seconds:.1f} s, {rate:.1f} frames/s "
            f"(including decoding and writing) on {self.backend}"
        )
        total = self.num_frames + self.drops + len(self.skipped)
        yield (
            f"frames: {total} in, {self.num_frames} out, {self.drops} dropped, {len(self.skipped)} skipped"
        )
        if self.stages:
            texts = (f"{stage} {p50:g} / {p95:g}" for stage, (p50, p95) in self.stages.items())
            yield f"p50 / p95 in ms: {', '.join(texts)}"
        if self.target_fps is not None:
            yield (
                f"deadline misses: {self.misses} of {max(0, self.num_frames - 1)} results came more than "
                f"{1e3 / self.target_fps:.1f} ms after the one before"
            )
        if self.is_cut_short:
            yield "interrupted: the source has more frames"
        if self.output is not None and self.num_frames:
            yield f"wrote {self.output}"


def frames_text(count: int) -> str:
    """Get ``1 frame`` or ``N frames``."""
    return "1 frame" if count == 1 else f"{count} frames"
