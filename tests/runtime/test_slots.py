"""The bookkeeping of slots, without a library: each batch is doubled when it is finished."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.artefact.tensors import TensorSpec
from runtime.errors import InvalidInput
from runtime.slots import HostSlotQueue

SPEC = TensorSpec(name="frames", dtype=np.dtype(np.int64), shape=(None, 2))


class Doubling(HostSlotQueue):
    """Doubles its input, and fails as it is told."""

    def __init__(self, num_slots=3):
        super().__init__(SPEC, num_slots=num_slots, max_batch=4)
        self.error_at_start = self.error_at_finish = None

    def _start(self, slot, num_frames):
        if self.error_at_start:
            raise self.error_at_start

    def _finish(self, slot, num_frames):
        if self.error_at_finish:
            raise self.error_at_finish
        return (slot.array[:num_frames] * 2,)


def batch_of(count, value):
    return np.full((count, 2), value)


@settings(deadline=None)
@given(
    num_slots=st.integers(1, 4),
    moves=st.lists(st.one_of(st.integers(1, 4), st.none()), min_size=1, max_size=25),
    data=st.data(),
)
def test_any_order_of_submit_and_collect_gives_each_batch_its_result(num_slots, moves, data):
    queue = Doubling(num_slots)
    flying = []
    for number, count in enumerate(moves):
        if count is not None and len(flying) < num_slots:
            flying.append((queue.submit(batch_of(count, number)), count, number))
        elif flying:
            ticket, count, number = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            np.testing.assert_array_equal(
                queue.collect(ticket), [np.full((count, 2), 2 * number)], strict=True
            )
    for _, count, number in flying:
        assert queue.collect()[0].shape == (count, 2)
        assert number is not None


def test_a_batch_whose_collection_was_interrupted_can_be_collected_again():
    queue = Doubling(num_slots=1)
    ticket = queue.submit(batch_of(1, 5))
    queue.error_at_finish = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        queue.collect(ticket)
    queue.error_at_finish = None
    assert queue.collect(ticket)[0].tolist() == [[10, 10]]


def test_a_batch_that_fails_frees_its_slot():
    queue = Doubling(num_slots=1)
    ticket = queue.submit(batch_of(1, 5))
    queue.error_at_finish = OSError("no result")
    with pytest.raises(OSError, match="no result"):
        queue.collect(ticket)
    queue.error_at_finish = None
    assert queue.run(batch_of(1, 1))[0].tolist() == [[2, 2]]


@pytest.mark.parametrize("error", [OSError("no result"), KeyboardInterrupt()])
def test_a_run_that_fails_frees_its_slot(error):
    queue = Doubling(num_slots=1)
    queue.error_at_finish = error
    with pytest.raises(type(error)):
        queue.run(batch_of(1, 1))
    queue.error_at_finish = None
    assert queue.run(batch_of(1, 1))[0].tolist() == [[2, 2]]


def test_a_batch_that_does_not_start_frees_its_slot():
    queue = Doubling(num_slots=1)
    queue.error_at_start = OSError("no start")
    with pytest.raises(OSError, match="no start"):
        queue.submit(batch_of(1, 1))
    queue.error_at_start = None
    assert queue.run(batch_of(1, 1))[0].tolist() == [[2, 2]]


def test_an_interrupted_start_makes_the_queue_unusable():
    queue = Doubling()
    queue.error_at_start = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        queue.submit(batch_of(1, 1))
    with pytest.raises(InvalidInput, match="interrupted"):
        queue.submit(batch_of(1, 1))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        pytest.param(batch_of(5, 0), "batch of 5 frames, a slot holds 1 to 4", id="too-many"),
        pytest.param(batch_of(0, 0), "batch of 0 frames", id="none"),
        pytest.param(batch_of(1, 0.5), "must be int64", id="type"),
        pytest.param(np.zeros((1, 3), np.int64), "must be int64", id="shape"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_its_slot_freed(batch, message):
    queue = Doubling(num_slots=1)
    with pytest.raises(InvalidInput, match=message):
        queue.submit(batch)
    assert queue.run(batch_of(1, 1))[0].tolist() == [[2, 2]]
