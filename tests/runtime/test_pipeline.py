"""Stages side by side: order, bounded memory, and an end without a thread left, however it ends."""

import itertools
import queue
import threading
import time
from contextlib import closing

import pytest

from runtime.pipeline import Pipeline


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Broken(Exception):
    """Error that a stage of these tests raises."""


def fail_at(index, error):
    """A stage that hands items on until one of them is ``index``."""

    def stage(item):
        if item == index:
            raise error
        return item

    return stage


def plus_one(item):
    return item + 1


def test_items_pass_all_stages_in_order():
    assert list(Pipeline(range(100), plus_one, str)) == [str(i + 1) for i in range(100)]


def test_order_is_kept_when_some_items_take_longer():
    def uneven(item):
        time.sleep(0.01 * (item % 3 == 0))
        return item

    assert list(Pipeline(range(12), uneven, plus_one)) == list(range(1, 13))


@pytest.mark.parametrize("stages", [(), (plus_one,)], ids=["no-stage", "one-stage"])
def test_an_empty_source_ends_at_once(stages):
    assert list(Pipeline([], *stages)) == []


def test_an_exhausted_pipeline_stays_empty():
    pipeline = Pipeline(range(5), plus_one)
    assert (list(pipeline), list(pipeline)) == ([1, 2, 3, 4, 5], [])


def test_what_is_ready_can_be_taken_without_waiting():
    gate = threading.Event()

    def source():
        yield 1
        assert gate.wait(10)
        yield 2

    with closing(Pipeline(source())) as pipeline:
        assert pipeline.next_within(10) == 1
        with pytest.raises(queue.Empty):
            pipeline.next_within(0)
        gate.set()
        assert list(pipeline) == [2]


def test_none_is_an_item_like_any_other():
    assert list(Pipeline([1, None, 2], lambda item: item)) == [1, None, 2]


@pytest.mark.parametrize("queue_size", [1, 3])
@pytest.mark.parametrize("num_stages", [0, 1, 2])
def test_a_slow_consumer_holds_the_source_back(queue_size, num_stages):
    made = 0

    def source():
        nonlocal made
        while True:
            made += 1
            yield made

    results = Pipeline(source(), *[plus_one] * num_stages, queue_size=queue_size)
    next(results)
    # One item taken; then each thread has one in hand, and each queue is full.
    limit = 1 + (queue_size + 1) * (num_stages + 1)
    deadline = time.monotonic() + 5
    while made < limit and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert made == limit
    results.close()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda e: Pipeline(map(fail_at(3, e), itertools.count())), id="source-alone"),
        pytest.param(
            lambda e: Pipeline(map(fail_at(3, e), itertools.count()), plus_one, plus_one),
            id="source",
        ),
        pytest.param(lambda e: Pipeline(itertools.count(), fail_at(3, e), plus_one), id="first"),
        pytest.param(lambda e: Pipeline(itertools.count(), plus_one, fail_at(3, e)), id="last"),
        pytest.param(
            lambda e: Pipeline(itertools.count(), fail_at(0, e), plus_one, queue_size=1),
            id="first-item",
        ),
    ],
)
def test_whoever_fails_the_caller_gets_the_very_error(make):
    error = Broken("at item 3")
    with pytest.raises(Broken) as raised:
        list(make(error))
    assert raised.value is error


@pytest.mark.parametrize("stages", [(), (plus_one,), (plus_one, plus_one)])
def test_the_results_before_an_error_come_first(stages):
    results = []
    with pytest.raises(Broken):
        results.extend(Pipeline(map(fail_at(3, Broken()), range(9)), *stages))
    assert len(results) == 3


def test_an_error_ends_a_source_that_waits_for_room():
    with pytest.raises(Broken):
        list(Pipeline(itertools.count(), plus_one, fail_at(3, Broken()), queue_size=1))


def test_a_stage_that_raises_stop_iteration_does_not_pass_for_the_end():
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(Pipeline(range(5), fail_at(3, StopIteration())))


def test_a_source_that_cannot_be_iterated_fails_in_the_caller():
    with pytest.raises(TypeError, match="not iterable"):
        list(Pipeline(None, plus_one))


def test_leaving_early_ends_the_threads():
    with closing(Pipeline(itertools.count(), plus_one, plus_one)) as pipeline:
        assert next(pipeline) == 2
    assert list(pipeline) == []


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_an_error_of_the_consumer_reaches_the_caller(error):
    def consume():
        with closing(Pipeline(itertools.count(), plus_one, plus_one)) as pipeline:
            for item in pipeline:
                if item == 5:
                    raise error

    with pytest.raises(error):
        consume()


def test_an_interrupt_between_the_first_threads_ends_those_that_run(monkeypatch):
    start, started = threading.Thread.start, []

    def start_two(thread):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(KeyboardInterrupt):
        list(Pipeline(itertools.count(), plus_one, plus_one))


@pytest.mark.serial
def test_stages_work_at_the_same_time():
    windows = {"first": [], "second": []}

    def stage(name):
        def work(item):
            started = time.perf_counter()
            time.sleep(0.02)
            windows[name].append((started, time.perf_counter()))
            return item

        return work

    list(Pipeline(range(6), stage("first"), stage("second")))
    overlaps = [
        max(a_start, b_start) < min(a_end, b_end)
        for a_start, a_end in windows["first"]
        for b_start, b_end in windows["second"]
    ]
    assert sum(overlaps) >= 3
