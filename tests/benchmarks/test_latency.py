from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import pytest

from benchmarks.scopes import ENGINE
from benchmarks.timing import latency
from benchmarks.timing.latency import TimingConfig, Workload, measure_latency

NO_WARMUP = {"warmup_seconds": 0.0, "warmup_calls": 1, "warmup_cap_seconds": 0.0}


class Clock:
    """A clock that only calls move, so that no test depends on the machine's own pace."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter_ns(self) -> int:
        return self.ns

    def perf_counter(self) -> float:
        return self.ns / 1e9

    def workload(
        self, *, ms: float | Iterable[float], name: str = "a", log: list | None = None
    ) -> Workload:
        """Make a workload whose calls take so many milliseconds."""
        durations = itertools.repeat(ms) if isinstance(ms, float) else iter(ms)

        def call(index: int) -> None:
            if log is not None:
                log.append((name, index))
            self.ns += round(next(durations) * 1e6)

        return Workload(name=name, scope=ENGINE, call=call)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_the_clock_reads_what_the_call_takes(clock, quick):
    assert measure_latency([clock.workload(ms=5.0)], quick)[0].p50 == 5.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"min_seconds": 0.0, "min_samples": 7}, 7, id="samples decide"),
        pytest.param({"min_seconds": 0.5, "min_samples": 7}, 50, id="seconds decide"),
        pytest.param(
            {"min_seconds": 0.5, "min_samples": 10**6, "cap_seconds": 1.0}, 100, id="cap decides"
        ),
    ],
)
def test_measuring_stops_when_the_config_says(clock, settings, expected):
    config = TimingConfig(**NO_WARMUP, **settings)
    assert measure_latency([clock.workload(ms=10.0)], config)[0].n == expected


def test_workloads_take_turns_of_the_block_length(clock):
    log: list[tuple[str, int]] = []
    workloads = [clock.workload(ms=10.0, name=name, log=log) for name in "ab"]
    config = TimingConfig(**NO_WARMUP, min_seconds=0.0, min_samples=9, block_seconds=0.03)
    measure_latency(workloads, config)
    turns = ["".join(names) for _, names in itertools.groupby(name for name, _ in log)]
    assert turns == ["a", "b", "aaaa", "bbbb", "aaaa", "bbbb", "aaaa", "bbbb"]


def test_the_first_call_of_a_turn_is_not_timed(clock):
    durations = itertools.chain(
        [1.0, 500.0], itertools.repeat(1.0)
    )  # warm-up, first of the only turn
    config = TimingConfig(**NO_WARMUP, min_seconds=0.0, min_samples=5, block_seconds=1.0)
    assert measure_latency([clock.workload(ms=durations)], config)[0].max == 1.0


@pytest.mark.parametrize(
    ("durations", "settings", "expected"),
    [
        pytest.param([10.0] * 500, {"warmup_seconds": 1.0}, 100, id="time decides"),
        pytest.param([10.0] * 500, {"warmup_calls": 70}, 70, id="calls decide"),
        pytest.param([30.0] * 45 + [10.0] * 500, {"warmup_calls": 50}, 71, id="until it settles"),
        pytest.param(
            [10 * 1.01**i for i in range(300)],
            {"warmup_cap_seconds": 2.0},
            111,
            id="at most the cap",
        ),
        pytest.param(
            [10.0] * 500, {"warmup_seconds": 1.0, "cap_seconds": 0.2}, 20, id="no longer than timed"
        ),
    ],
)
def test_warm_up_lasts_as_long_as_it_must(clock, durations, settings, expected):
    log: list[tuple[str, int]] = []
    defaults = {"warmup_seconds": 0.0, "warmup_calls": 30, "warmup_cap_seconds": 60.0}
    config = TimingConfig(
        **{**defaults, **settings}, min_seconds=0.0, min_samples=1, block_seconds=0.0
    )
    summary = measure_latency([clock.workload(ms=durations, log=log)], config)[0]
    untimed_first_call = 1
    assert len(log) - summary.n - untimed_first_call == expected


def test_calls_are_numbered_from_zero_without_gaps(clock, quick):
    log: list[tuple[str, int]] = []
    measure_latency([clock.workload(ms=1.0, log=log)], quick)
    assert [index for _, index in log] == list(range(len(log)))


def test_progress_ends_at_the_whole_for_every_workload(clock, quick):
    told: dict[str, float] = {}
    report: Callable[[Workload, float], None] = lambda s, share: told.update({s.name: share})  # noqa: E731
    measure_latency([clock.workload(ms=1.0, name=name) for name in "ab"], quick, on_turn=report)
    assert told == {"a": 1.0, "b": 1.0}


def test_device_times_are_read_after_every_timed_call_and_no_other(clock, quick):
    reads: list[int] = []
    workload = dataclasses.replace(clock.workload(ms=1.0), after=lambda: reads.append(clock.ns))
    summary = measure_latency([workload], quick)[0]
    assert len(reads) == summary.n


def test_a_summary_knows_the_frames_of_a_call(clock, quick):
    workload = dataclasses.replace(clock.workload(ms=20.0), frames=4)
    assert measure_latency([workload], quick)[0].fps == 200.0
