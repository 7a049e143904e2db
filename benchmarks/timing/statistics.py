"""Summaries of timings: percentiles, spread and bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_SAMPLES_FOR_P99 = 300
"""With fewer samples, p99 is not reported: fewer than four samples would lie beyond it."""
STABLE_WITHIN = 1.05
"""Largest ratio between the thirds of a stable run."""
_MAX_INTERVAL_WIDTH = 0.03
_BOOTSTRAP_ROUNDS = 1000
_BOOTSTRAP_BLOCKS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Summary of the timings of a call, in milliseconds; all samples count, outliers included."""

    frames: int
    """Frames of a call."""
    n: int
    """Number of samples."""
    mean: float
    """Arithmetic mean."""
    std: float
    """Standard deviation."""
    min: float
    """Minimum."""
    max: float
    """Maximum."""
    p50: float
    """Median."""
    p90: float
    """90th percentile."""
    p95: float
    """95th percentile."""
    p99: float | None
    """99th percentile; ``None`` with fewer than 300 samples."""
    p50_low: float
    """Lower end of the bootstrap 95 % interval of the median."""
    p50_high: float
    """Upper end of the bootstrap 95 % interval of the median."""
    quantiles: tuple[float, ...]
    """Percentiles 0 to 100, 101 values."""
    is_stable: bool
    """True if the medians of the first, middle and last third differ by at most 5 %, and the interval of the
    median is at most 3 % wide."""

    @property
    def fps(self) -> float:
        """Frames per second at the median."""
        return 1e3 * self.frames / self.p50

    @property
    def fps_low(self) -> float:
        """Lower end of the interval of ``fps``."""
        return 1e3 * self.frames / self.p50_high


def summarize(samples_ms: Sequence[float], frames: int = 1) -> Summary:
    """Summarize at least one timing of a call of ``frames`` frames, in milliseconds and measurement order.

    Percentiles are nearest-rank: each is a measured sample.
    """
    times = np.asarray(samples_ms, np.float64)
    low, high = bootstrap_interval(times)
    quantiles = np.percentile(times, np.arange(101), method="inverted_cdf").tolist()
    is_certain = len(times) >= 3 and high - low <= _MAX_INTERVAL_WIDTH * quantiles[50]
    return Summary(
        frames=frames,
        n=len(times),
        mean=float(times.mean()),
        std=float(times.std()),
        min=quantiles[0],
        max=quantiles[100],
        p50=quantiles[50],
        p90=quantiles[90],
        p95=quantiles[95],
        p99=quantiles[99] if len(times) >= MIN_SAMPLES_FOR_P99 else None,
        p50_low=low,
        p50_high=high,
        quantiles=tuple(quantiles),
        is_stable=is_certain and is_steady([np.median(part) for part in np.array_split(times, 3)]),
    )


def is_steady(values: Sequence[float] | np.ndarray) -> bool:
    """Check that positive values differ by at most 5 %."""
    return bool(max(values) <= min(values) * STABLE_WITHIN)


def bootstrap_interval(
    samples: np.ndarray,
    statistic: Callable[[np.ndarray], Any] = np.median,
    *,
    least_block: int = 1,
) -> tuple[float, float]:
    """Compute the bootstrap 95 % interval of a statistic, with a fixed random seed.

    It resamples blocks of neighbouring samples, a twelfth of all samples each. Slow periods of a machine span
    many samples, so resampling single samples would give an interval that is too narrow. ``least_block`` is
    the size of a block that few samples should have, too, while there are four blocks.
    """
    random = np.random.default_rng(0)
    size = len(samples)
    block = max(1, size // _BOOTSTRAP_BLOCKS, min(least_block, size // 4))
    count = math.ceil(len(samples) / block)
    values = np.empty(_BOOTSTRAP_ROUNDS)
    for index in range(_BOOTSTRAP_ROUNDS):
        starts = random.integers(0, len(samples), count)
        picks = (starts[:, None] + np.arange(block)) % len(samples)
        values[index] = statistic(samples[picks.ravel()[: len(samples)]])
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
