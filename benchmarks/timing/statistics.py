"""Summaries of timings: percentiles, spread, and how sure the median is. Nothing is thrown away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_SAMPLES_FOR_P99 = 300
"""Below this, fewer than four samples lie beyond p99, and it is not reported."""
_BOOTSTRAP_ROUNDS = 1000
_WINDOWS = 3
_STABLE_WITHIN = 1.05
_SURE_WITHIN = 0.03
_BLOCKS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Timings of one thing, in milliseconds."""

    n: int
    """Samples."""
    mean: float
    """Arithmetic mean."""
    std: float
    """Standard deviation."""
    cv: float
    """Standard deviation over mean."""
    min: float
    """Fastest."""
    max: float
    """Slowest."""
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
    """Upper end of that interval."""
    quantiles: tuple[float, ...]
    """The 0th to the 100th percentile, 101 of them: the whole distribution, for pictures."""
    is_stable: bool
    """Whether the medians of the first, middle and last third lie within 5 % of one another, and the interval
    of the median is no wider than 3 % of it."""

    @property
    def fps(self) -> float:
        """Frames a second at the median, one frame at a time."""
        return 1e3 / self.p50


def summarize(samples_ms: Sequence[float]) -> Summary:
    """Describe timings.

    Args:
        samples_ms: At least one sample, in the order they were taken.

    Returns:
        The summary; percentiles are of nearest rank, so that each is a time that was measured.
    """
    times = np.asarray(samples_ms, np.float64)
    low, high = median_interval(times)
    return Summary(
        n=len(times),
        mean=float(times.mean()),
        std=float(times.std()),
        cv=float(times.std() / times.mean()),
        min=float(times.min()),
        max=float(times.max()),
        p50=percentile(times, 50),
        p90=percentile(times, 90),
        p95=percentile(times, 95),
        p99=percentile(times, 99) if len(times) >= MIN_SAMPLES_FOR_P99 else None,
        p50_low=low,
        p50_high=high,
        quantiles=tuple(np.quantile(times, np.linspace(0, 1, 101), method="inverted_cdf").tolist()),
        is_stable=_is_stable(times, low, high),
    )


def percentile(times: np.ndarray, percent: float) -> float:
    """Take the smallest sample that at least ``percent`` of all samples do not exceed."""
    rank = max(1, math.ceil(percent / 100 * len(times)))
    return float(np.partition(times, rank - 1)[rank - 1])


def median_interval(times: np.ndarray) -> tuple[float, float]:
    """Bootstrap the median: resample blocks with replacement, seed fixed, and cut 2.5 % off both ends."""
    low, high = np.percentile(_bootstrap_medians(times), [2.5, 97.5])
    return float(low), float(high)


def _bootstrap_medians(times: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Resample in blocks of neighbours, a twelfth of all at a time.

    A machine's slow spells last for many samples: drawn one by one, they promise too narrow an interval.
    """
    random = np.random.default_rng(seed)
    block = max(1, len(times) // _BLOCKS)
    count = math.ceil(len(times) / block)
    medians = np.empty(_BOOTSTRAP_ROUNDS)
    for index in range(_BOOTSTRAP_ROUNDS):
        starts = random.integers(0, len(times), count)
        picks = (starts[:, None] + np.arange(block)) % len(times)
        medians[index] = np.median(times[picks.ravel()[: len(times)]])
    return medians


def _is_stable(times: np.ndarray, low: float, high: float) -> bool:
    if len(times) < _WINDOWS or high - low > _SURE_WITHIN * percentile(times, 50):
        return False
    medians = [float(np.median(window)) for window in np.array_split(times, _WINDOWS)]
    return max(medians) <= min(medians) * _STABLE_WITHIN
