"""Fixtures of the benchmark tests."""

from __future__ import annotations

import pytest

from benchmarks.timing.latency import TimingConfig


@pytest.fixture(scope="session")
def quick() -> TimingConfig:
    """Timing config with five samples per workload, short turns and almost no warm-up."""
    return TimingConfig(
        warmup_seconds=0.0,
        warmup_calls=1,
        warmup_cap_seconds=0.05,
        min_seconds=0.0,
        min_samples=5,
        cap_seconds=0.5,
        block_seconds=0.01,
    )
