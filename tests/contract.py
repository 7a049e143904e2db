"""The asynchronous contract of every backend, as checks of an open one.

Each check gets the backend, at least twelve batches of 1 to 3 frames, and the outputs of ``infer`` for each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from runtime.backends.base import Backend
from runtime.errors import BackendBusy, InvalidInput

Outputs = tuple[np.ndarray, ...]
Check = Callable[[Backend, Sequence[np.ndarray], Sequence[Outputs]], None]


def same(outputs: Outputs, wanted: Outputs) -> bool:
    """Compare all outputs, bit by bit."""
    return len(outputs) == len(wanted) and all(map(np.array_equal, outputs, wanted))


def all_slots_are_free(backend: Backend) -> bool:
    """Acquire every slot and give all back."""
    slots = [backend.acquire(timeout=1) for _ in range(backend.num_slots)]
    for slot in slots:
        slot.release()
    return True


def check_stream_with_a_slow_consumer(backend, batches, results):
    """All results come in order, though the consumer is slower than the backend."""
    count = 0
    for outputs, wanted in zip(backend.stream(batches), results, strict=True):
        time.sleep(0.002)
        assert same(outputs, wanted)
        count += 1
    assert count == len(batches)
    assert all_slots_are_free(backend)


def check_stream_of_slots(backend, batches, results):
    """Batches may be decoded straight into acquired slots."""

    def decoded() -> Iterator[object]:
        for batch in batches:
            slot = backend.acquire()
            slot.array[: len(batch)], slot.num_frames = batch, len(batch)
            yield slot

    for outputs, wanted in zip(backend.stream(decoded()), results, strict=True):
        assert same(outputs, wanted)
    assert all_slots_are_free(backend)


def check_stream_with_a_failing_batch(backend, batches, results):
    """The results before a bad batch arrive, then its error; the backend goes on."""
    bad = [*batches[:5], batches[5].astype(np.float64), *batches[6:]]
    seen: list[Outputs] = []
    with pytest.raises(InvalidInput, match="float64"):
        seen.extend(backend.stream(bad))
    assert len(seen) == 5
    assert all(map(same, seen, results[:5]))
    assert same(backend.infer(batches[0]), results[0])
    assert all_slots_are_free(backend)


def check_stream_with_a_failing_source(backend, batches, results):
    """An error of the iterator that gives the batches reaches the caller."""

    def broken() -> Iterator[np.ndarray]:
        yield from batches[:3]
        raise OSError("the camera is gone")

    seen: list[Outputs] = []
    with pytest.raises(OSError, match="the camera is gone"):
        seen.extend(backend.stream(broken()))
    assert all(map(same, seen, results[:3]))
    assert len(seen) == 3
    assert all_slots_are_free(backend)


def check_stream_left_early(backend, batches, results):
    """Leaving a stream early, by close() or Ctrl-C, frees all slots and ends its thread."""
    threads = threading.active_count()
    stream = backend.stream(batches)
    assert same(next(stream), results[0])
    stream.close()
    with pytest.raises(KeyboardInterrupt):
        interrupt_the_second(backend.stream(batches))
    assert threading.active_count() <= threads + backend.num_slots  # a pool may have started
    assert all_slots_are_free(backend)


def interrupt_the_second(stream: Iterator[Outputs]) -> None:
    """Raise Ctrl-C at the second result."""
    for number, _ in enumerate(stream):
        if number == 1:
            raise KeyboardInterrupt


def check_four_threads(backend, batches, results):
    """Four threads submit and collect, and others infer; each result belongs to its batch."""
    wrong: list[str] = []

    def submit(first: int) -> None:
        for step in range(3 * len(batches)):
            index = (first + step) % len(batches)
            if not same(backend.collect(backend.submit(batches[index])), results[index]):
                wrong.append("submit")

    def infer() -> None:
        for batch, wanted in zip(batches, results, strict=True):
            if not same(backend.infer(batch), wanted):
                wrong.append("infer")

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(4)]
    threads.append(threading.Thread(target=infer))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread is stuck"
    assert wrong == []


def check_two_streams_at_once(backend, batches, results):
    """Two streams of two threads share the slots."""
    right: list[bool] = []

    def work() -> None:
        found = list(backend.stream(batches))
        right.append(len(found) == len(results) and all(map(same, found, results)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a stream is stuck"
    assert right == [True, True]


def check_tickets_in_any_order(backend, batches, results):
    """Tickets are collected once, in any order; without a ticket, the oldest batch comes."""
    number = backend.num_slots
    tickets = [backend.submit(batch) for batch in batches[:number]]
    last = backend.collect(tickets[-1])
    assert same(last, results[number - 1])
    for wanted in results[: number - 1]:
        assert same(backend.collect(), wanted)
    for ticket in (tickets[0], None):
        with pytest.raises(InvalidInput, match="is in flight"):
            backend.collect(ticket)


def check_a_full_backend(backend, batches, results):
    """A full backend raises after the timeout, and blocks without one."""
    tickets = [backend.submit(batches[0]) for _ in range(backend.num_slots)]
    with pytest.raises(BackendBusy, match="slots are in use"):
        backend.acquire(timeout=0.01)
    with pytest.raises(BackendBusy):
        backend.submit(batches[1], timeout=0)
    later: list[object] = []
    waiting = threading.Thread(target=lambda: later.append(backend.submit(batches[1])))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert same(backend.collect(), results[0])
    waiting.join(10)
    for ticket in tickets[1:]:
        assert same(backend.collect(ticket), results[0])
    assert same(backend.collect(later[0]), results[1])


def check_slots_have_one_owner(backend, batches, results):
    """A slot is submitted once; a refused one stays the caller's, and release() gives it back."""
    slot = backend.acquire()
    with pytest.raises(InvalidInput, match="batch of 0 frames"):
        backend.submit(slot, num_frames=0)
    slot.array[: len(batches[1])] = batches[1]
    ticket = backend.submit(slot, num_frames=len(batches[1]))
    with pytest.raises(InvalidInput, match="not the caller's"):
        backend.submit(slot, num_frames=1)
    slot.release()  # too late: it is the backend's
    assert same(backend.collect(ticket), results[1])
    backend.acquire().release()
    assert all_slots_are_free(backend)


def check_results_are_the_callers(backend, batches, results):
    """Outputs stay as they are while later batches run; inputs may be changed after submit."""
    own = batches[0].copy()
    ticket = backend.submit(own)
    own[...] = 0
    kept = backend.collect(ticket)
    for _ in backend.stream(batches):
        pass
    assert same(kept, results[0])
    kept[0][...] = 0
    assert same(backend.infer(batches[0]), results[0])


def check_closing(backend, batches, results):
    """Closing waits for what is in flight; a thread that waits for a slot gets an error. It comes last."""
    for _ in range(backend.num_slots):
        backend.submit(batches[0])
    errors: list[BaseException] = []

    def wait_for_a_slot() -> None:
        try:
            backend.acquire()
        except InvalidInput as error:
            errors.append(error)

    waiting = threading.Thread(target=wait_for_a_slot)
    waiting.start()
    waiting.join(0.05)
    backend.close()
    waiting.join(10)
    assert len(errors) == 1
    for use in (backend.acquire, backend.collect, lambda: backend.submit(batches[0])):
        with pytest.raises(InvalidInput, match="is closed"):
            use()


CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check
    for name, check in dict(globals()).items()
    if name.startswith("check_")
}
