"""The slot ring on a fake GPU that runs work in any order the events allow."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.backends.base import TensorSpec
from runtime.cuda.ring import SlotLayout, SlotRing
from runtime.errors import CudaError, InvalidInput
from tests.fake_cuda import FakeDevice

ITEM = (4, 6, 3)
UINT8 = np.dtype(np.uint8)


def layout(max_batch: int = 4) -> SlotLayout:
    return SlotLayout(
        input=TensorSpec(name="frames", dtype=UINT8, shape=(None, *ITEM)),
        outputs=(
            TensorSpec(name="labels", dtype=UINT8, shape=(None, 4, 6)),
            TensorSpec(name="sums", dtype=np.dtype(np.float32), shape=(None, 2)),
        ),
        max_batch=max_batch,
    )


def expected(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums = np.stack([batch.sum((1, 2, 3)), batch.max((1, 2, 3))], 1).astype(np.float32)
    return batch.max(3), sums


def engine(device: FakeDevice):
    """An engine: labels are the channels' maximum."""

    def enqueue(slot, num_frames, stream):
        frames, labels, sums = slot.input_buffer.address, *(b.address for b in slot.output_buffers)

        def run() -> None:
            size = int(np.prod(ITEM))
            batch = device.at(frames)[: num_frames * size].reshape(num_frames, *ITEM)
            for address, result in zip((labels, sums), expected(batch), strict=True):
                device.at(address)[: result.nbytes] = (
                    np.ascontiguousarray(result).view(np.uint8).ravel()
                )

        device.launch(run, (frames,), (labels, sums), stream.handle)

    return enqueue


def ring_on(device: FakeDevice, **settings) -> SlotRing:
    return SlotRing(device, layout(), engine(device), **settings)


def batch_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *ITEM), np.uint8)


def same(views, batch) -> bool:
    return all(
        np.array_equal(view, want) for view, want in zip(views, expected(batch), strict=True)
    )


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    num_slots=st.integers(1, 4),
    use_graphs=st.booleans(),
    moves=st.lists(st.one_of(st.integers(1, 4), st.none()), min_size=1, max_size=25),
)
def test_any_order_of_submit_and_collect_gives_what_a_plain_loop_gives(
    seed, num_slots, use_graphs, moves
):
    device = FakeDevice(seed=seed)
    flying: list[tuple[int, np.ndarray]] = []
    with ring_on(device, num_slots=num_slots, use_graphs=use_graphs) as ring:
        for number, count in enumerate(moves):
            if count is not None and len(flying) < num_slots:
                batch = batch_of(count, number)
                flying.append((ring.submit(batch), batch))
            elif flying:
                ticket, batch = flying.pop(0)
                assert same(ring.collect(ticket), batch)
        for ticket, batch in flying:
            assert same(ring.collect(ticket), batch)
        device.check_races()
    device.close()


def test_the_fake_finds_a_race():
    """The checker itself: without an event between them, a copy in and a kernel race."""
    device = FakeDevice()
    with device.current():
        first, second = device.new_stream(), device.new_stream()
        memory, pinned = device.device_buffer(8), device.pinned_buffer(8)
        device.copy_to_device(memory, pinned, 8, first)
        device.launch(lambda: None, (memory.address,), (), second.handle)
        first.synchronize()
        second.synchronize()
    with pytest.raises(AssertionError, match="race"):
        device.check_races()


def test_several_batches_are_in_flight_before_anything_is_waited_for():
    device = FakeDevice()
    with ring_on(device, num_slots=3, use_graphs=False) as ring:
        for index in range(3):
            ring.submit(batch_of(2, index))
        assert device.synchronised == 0
        assert ring.free_slots == 0


def test_frames_may_be_decoded_straight_into_the_slot():
    with ring_on(FakeDevice()) as ring:
        batch = batch_of(3)
        view = ring.next_input()
        view[:3] = batch
        assert same(ring.collect(ring.submit(num_frames=3)), batch)
        assert view.shape == (4, *ITEM)


def test_results_are_views_until_their_slot_is_submitted_again():
    with ring_on(FakeDevice(), num_slots=2) as ring:
        first = ring.collect(ring.submit(batch_of(1, 1)))
        kept = first[0].copy()
        ring.collect(ring.submit(batch_of(1, 2)))
        np.testing.assert_array_equal(first[0], kept)
        ring.collect(ring.submit(batch_of(1, 3)))
        assert (first[0] != kept).any()


class TestGraphs:
    def test_each_size_is_run_captured_and_then_replayed(self):
        device = FakeDevice()
        with ring_on(device, num_slots=1) as ring:
            for count in (1, 1, 1, 1, 2, 2, 1):
                batch = batch_of(count, count)
                assert same(ring.collect(ring.submit(batch)), batch)
        assert (device.captures, device.launches) == (2, 5)

    def test_where_they_cannot_be_captured_it_goes_on_and_says_so_once(self):
        device = FakeDevice()
        device.can_capture = False
        with ring_on(device, num_slots=1) as ring:
            for index in range(5):
                batch = batch_of(2, index)
                assert same(ring.collect(ring.submit(batch)), batch)
            assert len(ring.notes) == 1
            assert "batches of 2 run without a CUDA graph" in ring.notes[0]
            assert "STREAM_CAPTURE_UNSUPPORTED" in ring.notes[0]

    def test_a_failed_capture_leaves_the_other_sizes_their_graphs(self):
        device = FakeDevice()
        device.capture_fails = {1}
        with ring_on(device, num_slots=1) as ring:
            for seed in range(4):
                for count in (1, 2):
                    batch = batch_of(count, seed)
                    assert same(ring.collect(ring.submit(batch)), batch)
            assert len(ring.notes) == 1
        assert (device.captures, device.launches) == (2, 3)

    def test_without_graphs_none_is_captured(self):
        device = FakeDevice()
        with ring_on(device, use_graphs=False) as ring:
            for _ in range(4):
                ring.collect(ring.submit(batch_of(1)))
        assert device.captures == 0


def test_nothing_is_allocated_for_a_batch():
    device = FakeDevice()
    with ring_on(device, num_slots=2) as ring:
        batch = batch_of(4)
        for _ in range(8):
            ring.collect(ring.submit(batch))
        made = device.allocations
        tracemalloc.start()
        for _ in range(50):
            ring.collect(ring.submit(batch))
        snapshot = tracemalloc.take_snapshot()
        tracemalloc.stop()
        own = snapshot.filter_traces([tracemalloc.Filter(True, "*/runtime/cuda/ring.py")])
        assert device.allocations == made
        assert sum(trace.size for trace in own.traces) < 20_000  # views and their tuples


def test_stage_times_are_measured_on_request():
    with ring_on(FakeDevice(), timing=True) as ring:
        ring.collect(ring.submit(batch_of(1)))
        assert all(stage > 0 for stage in ring.stage_times_ms())
    with ring_on(FakeDevice()) as ring, pytest.raises(InvalidInput, match="timing=True"):
        ring.stage_times_ms()


def test_threads_take_turns():
    device = FakeDevice()
    wrong = []
    with ring_on(device, num_slots=4) as ring:
        turn = threading.Lock()

        def work(seed: int) -> None:
            for index in range(20):
                batch = batch_of(1 + index % 4, seed * 100 + index)
                with turn:  # whoever submits collects before the slot comes round again
                    if not same(ring.collect(ring.submit(batch)), batch):
                        wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_thread_that_waits_for_a_batch_does_not_keep_others_from_submitting(monkeypatch):
    with ring_on(FakeDevice(), num_slots=3) as ring:
        first, second = batch_of(1, 1), batch_of(1, 2)
        ring.submit(first)
        event = ring._slots[0].copied_out
        is_waiting, goes_on = threading.Event(), threading.Event()
        reached, right = event.synchronize, []

        def synchronize() -> None:
            is_waiting.set()
            assert goes_on.wait(10)
            reached()

        monkeypatch.setattr(event, "synchronize", synchronize)
        consumer = threading.Thread(target=lambda: right.append(same(ring.collect(), first)))
        consumer.start()
        assert is_waiting.wait(10)
        producer = threading.Thread(target=ring.submit, args=(second,), daemon=True)
        producer.start()
        producer.join(2)
        overlaps = not producer.is_alive()
        goes_on.set()
        consumer.join()
        producer.join()
        assert (overlaps, right) == (True, [True])
        assert same(ring.collect(), second)


def test_close_waits_for_a_thread_that_collects(monkeypatch):
    device = FakeDevice()
    ring = ring_on(device)
    ring.submit(batch_of(1))
    event = ring._slots[0].copied_out
    is_waiting, goes_on, right = threading.Event(), threading.Event(), []
    reached = event.synchronize

    def synchronize() -> None:
        is_waiting.set()
        assert goes_on.wait(10)
        reached()

    monkeypatch.setattr(event, "synchronize", synchronize)
    consumer = threading.Thread(target=lambda: right.append(same(ring.collect(), batch_of(1))))
    consumer.start()
    assert is_waiting.wait(10)
    closer = threading.Thread(target=ring.close)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    assert device.alive
    goes_on.set()
    consumer.join()
    closer.join()
    assert right == [True]
    assert not device.alive


class TestMisuse:
    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            pytest.param(batch_of(5), "batch of 5 frames, a slot holds 1 to 4", id="too-many"),
            pytest.param(np.zeros((0, *ITEM), np.uint8), "batch of 0 frames", id="none"),
            pytest.param(np.zeros((1, *ITEM), np.float32), "must be uint8", id="type"),
            pytest.param(np.zeros((1, 4, 6, 4), np.uint8), "must be uint8", id="shape"),
        ],
    )
    def test_a_batch_that_does_not_fit_is_refused_and_the_ring_goes_on(self, batch, message):
        with ring_on(FakeDevice()) as ring:
            with pytest.raises(InvalidInput, match=message):
                ring.submit(batch)
            good = batch_of(4)
            assert same(ring.collect(ring.submit(good)), good)

    def test_a_full_ring_asks_to_collect_first(self):
        with ring_on(FakeDevice(), num_slots=1) as ring:
            ring.submit(batch_of(1))
            with pytest.raises(InvalidInput, match="still in flight") as caught:
                ring.submit(batch_of(1))
            assert "collect()" in caught.value.hint

    def test_nothing_in_flight_cannot_be_collected(self):
        with (
            ring_on(FakeDevice()) as ring,
            pytest.raises(InvalidInput, match="no batch is in flight"),
        ):
            ring.collect()

    def test_a_ticket_is_collected_once(self):
        with ring_on(FakeDevice()) as ring:
            ticket = ring.submit(batch_of(1))
            ring.collect(ticket)
            with pytest.raises(InvalidInput, match=f"no batch with ticket {ticket} is in flight"):
                ring.collect(ticket)

    def test_a_closed_ring_says_so(self):
        ring = ring_on(FakeDevice())
        ring.close()
        ring.close()
        with pytest.raises(InvalidInput, match="it is closed"):
            ring.submit(batch_of(1))

    def test_no_slots_are_refused(self):
        with pytest.raises(InvalidInput, match="at least 1 slot"):
            ring_on(FakeDevice(), num_slots=0)


class TestFailure:
    @pytest.mark.parametrize("at", range(12))
    def test_out_of_memory_anywhere_leaves_nothing_allocated(self, at):
        device = FakeDevice()
        device.fail_allocation_at = at
        with pytest.raises(CudaError, match="memory is full"):
            ring_on(device, num_slots=3)
        assert not device.alive
        device.close()

    def test_an_engine_that_fails_breaks_the_ring_and_can_be_closed(self):
        device = FakeDevice()

        def fail(slot, num_frames, stream):
            raise CudaError("the engine refuses", hint=None)

        ring = SlotRing(device, layout(), fail)
        with pytest.raises(CudaError, match="the engine refuses"):
            ring.submit(batch_of(1))
        with pytest.raises(InvalidInput, match="cannot be used: the engine refuses"):
            ring.submit(batch_of(1))
        ring.close()
        device.close()

    def test_a_lost_gpu_is_told_once_and_remembered(self):
        device = FakeDevice()
        ring = ring_on(device, use_graphs=False)
        ring.submit(batch_of(1))
        device.lost_after = 0
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
            ring.collect()
        with pytest.raises(InvalidInput, match="cannot be used"):
            ring.submit(batch_of(1))

    def test_a_lost_gpu_is_closed_with_an_error_and_everything_freed(self):
        device = FakeDevice()
        ring = ring_on(device, use_graphs=False)
        device.lost_after = 0
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
            ring.close()
        assert not device.alive
        ring.close()
        device.close()

    def test_streams_are_synchronised_before_anything_is_freed(self):
        device = FakeDevice()
        ring = ring_on(device)
        for _ in range(3):  # the graph is captured, and its resource registered, after the streams
            ring.collect(ring.submit(batch_of(1)))
        ring.submit(batch_of(1))
        events = []
        for item in device.alive:
            item.gone = lambda item=item, gone=item.gone: (events.append("freed"), gone())
        for stream in device.streams.values():
            stream.synchronize = lambda wait=stream.synchronize: (events.append("waited"), wait())
        ring.close()
        assert events[:3] == ["waited"] * 3
        assert set(events[3:]) == {"freed"}
