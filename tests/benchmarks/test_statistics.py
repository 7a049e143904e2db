from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.timing.statistics import bootstrap_interval, summarize

TIMES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=400)


@settings(max_examples=30, deadline=None)
@given(TIMES)
def test_percentiles_are_measured_values_in_order(times):
    summary = summarize(times)
    marks = [summary.min, summary.p50, summary.p90, summary.p95, summary.max]
    assert marks == sorted(marks)
    assert set(marks) <= set(times)


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        pytest.param(50, 50, id="median"),
        pytest.param(95, 95, id="p95"),
        pytest.param(99, 99, id="p99"),
        pytest.param(100, 100, id="maximum"),
    ],
)
def test_percentile_is_of_nearest_rank(percent, expected):
    times = np.random.default_rng(0).permutation(np.arange(1, 101)).astype(float)
    assert summarize(times.tolist()).quantiles[percent] == expected


@pytest.mark.parametrize(
    ("count", "is_reported"),
    [pytest.param(299, False, id="299"), pytest.param(300, True, id="300")],
)
def test_p99_needs_300_samples(count, is_reported):
    assert (summarize([1.0] * count).p99 is not None) == is_reported


def test_no_outlier_is_removed():
    summary = summarize([1.0] * 99 + [1000.0])
    assert summary.max == 1000.0
    assert summary.mean == pytest.approx(10.99)


def test_the_interval_holds_the_median_and_narrows_with_more_samples():
    random = np.random.default_rng(0)
    few, many = (summarize(random.normal(100, 10, n).tolist()) for n in (20, 2000))
    assert few.p50_low <= few.p50 <= few.p50_high
    assert many.p50_high - many.p50_low < few.p50_high - few.p50_low


@pytest.mark.parametrize(
    ("slow_down", "is_stable"),
    [
        pytest.param(1.02, True, id="2 %"),
        pytest.param(1.04, False, id="4 %, the median is not sure"),
        pytest.param(1.06, False, id="6 %"),
    ],
)
def test_a_median_that_moves_is_called_unstable(slow_down, is_stable):
    times = [100.0] * 60 + [100.0 * slow_down] * 30
    assert summarize(times).is_stable == is_stable


@pytest.mark.parametrize("frames", [1, 4])
def test_fps_is_frames_over_the_median(frames):
    summary = summarize([10.0, 20.0, 30.0], frames)
    assert summary.fps == pytest.approx(50.0 * frames)
    assert summary.fps_low == pytest.approx(1e3 * frames / summary.p50_high)


def test_slow_spells_widen_the_interval():
    random = np.random.default_rng(0)
    mixed = np.where(random.random(300) < 0.5, 100.0, 110.0) + random.normal(0, 1, 300)
    spells = np.sort(mixed)  # the same samples, slow ones together
    assert np.diff(bootstrap_interval(spells)) > np.diff(bootstrap_interval(mixed))
