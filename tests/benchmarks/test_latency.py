from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from benchmarks.latency import ENGINE, Protocol, Subject, cycle, measure_latency

QUICK = Protocol(
    warmup_seconds=0.0,
    warmup_calls=1,
    warmup_cap_seconds=0.05,
    min_seconds=0.02,
    min_samples=5,
    cap_seconds=1.0,
    block_seconds=0.01,
)


def subject(call, name="subject"):
    return Subject(name=name, scope=ENGINE, call=call)


def test_the_clock_reads_what_the_call_takes():
    summary = measure_latency([subject(lambda i: time.sleep(0.005))], QUICK)[0]
    assert 5.0 <= summary.min < 15.0


def test_measuring_stops_at_enough_time_and_samples():
    protocol = Protocol(warmup_cap_seconds=0.0, min_seconds=0.0, min_samples=7, cap_seconds=9.0)
    assert measure_latency([subject(lambda i: None)], protocol)[0].n == 7


def test_a_slow_subject_stops_at_the_cap():
    protocol = Protocol(warmup_cap_seconds=0.0, min_samples=10**6, cap_seconds=0.05)
    summary = measure_latency([subject(lambda i: time.sleep(0.01))], protocol)[0]
    assert 4 <= summary.n <= 6


def test_subjects_take_turns():
    order: list[str] = []
    subjects = [
        subject(lambda i, n=name: (order.append(n), time.sleep(0.004)), name) for name in ("a", "b")
    ]
    measure_latency(subjects, QUICK)
    switches = sum(1 for left, right in itertools.pairwise(order) if left != right)
    assert switches >= 3


def test_the_first_call_of_a_turn_is_not_timed():
    pauses = iter([0.0, 0.0] + [0.05] + [0.001] * 10_000)  # warm-up, warm-up, first of the turn
    protocol = Protocol(
        warmup_seconds=0.0,
        warmup_calls=2,
        warmup_cap_seconds=0.0,
        min_seconds=0.0,
        min_samples=5,
        block_seconds=1.0,
    )
    next(pauses)
    summary = measure_latency([subject(lambda i: time.sleep(next(pauses)))], protocol)[0]
    assert summary.max < 40.0


def test_warm_up_is_long_enough_and_not_counted():
    calls: list[int] = []
    protocol = Protocol(
        warmup_seconds=0.0, warmup_calls=40, warmup_cap_seconds=5.0, min_seconds=0.0, min_samples=3
    )
    summary = measure_latency([subject(lambda i: (calls.append(i), time.sleep(0.001)))], protocol)[
        0
    ]
    assert len(calls) - summary.n > 40


def test_calls_are_numbered_from_zero_without_gaps():
    seen: list[int] = []
    measure_latency([subject(seen.append)], Protocol(cap_seconds=0.01, warmup_cap_seconds=0.01))
    assert seen == list(range(len(seen)))


def test_cycle_goes_round_the_frames():
    frames = [np.full(1, value) for value in range(3)]
    assert [int(cycle(frames)(index)[0]) for index in range(5)] == [0, 1, 2, 0, 1]


def test_progress_is_told_for_every_subject():
    told: dict[str, float] = {}
    subjects = [subject(lambda i: time.sleep(0.001), name) for name in ("a", "b")]
    measure_latency(subjects, QUICK, on_turn=lambda s, share: told.update({s.name: share}))
    assert told == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}
