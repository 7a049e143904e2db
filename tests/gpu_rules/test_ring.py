"""The slot ring and the CUDA devices on a real CUDA library over the stub; every result is compared."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import threading

import pytest

from runtime.cuda.device import open_device
from runtime.cuda.ring import SlotRing
from runtime.errors import CudaError
from tests.cuda_stub import stub
from tests.gpu_rules.rules import LAYOUT, batch, drive, enqueue, is_right, on_stub, opened


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("use_graphs", [False, True])
@on_stub
def test_every_result_is_right(library, num_slots, use_graphs):
    with opened(library, num_slots=num_slots, use_graphs=use_graphs) as (_, ring):
        assert drive(ring) == 0
        assert ring.notes == []
    assert bool(stub.calls("cuGraphLaunch")) is use_graphs


@on_stub
def test_the_first_run_of_a_size_is_the_warm_up_of_its_capture(library):
    names = ("cuLaunchHostFunc", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphLaunch")
    with opened(library, num_slots=1) as (_, ring):
        assert is_right(ring.collect(ring.submit(batch(2))), batch(2))
        assert [stub.calls(name) for name in names] == [3, 2, 2, 0]  # with and without the copies
        assert is_right(ring.collect(ring.submit(batch(2, 1))), batch(2, 1))
        assert [stub.calls(name) for name in names] == [3, 2, 2, 1]
        assert is_right(ring.collect(ring.submit(batch(2, 2))), batch(2, 2))
        assert [stub.calls(name) for name in names] == [3, 2, 2, 2]


@on_stub
def test_all_graphs_of_a_size_are_captured_right_after_its_warm_up(library):
    """ONNX Runtime plans again after a run of another size, which a capture does not allow."""
    last = []

    def engine(slot, count, stream):
        if stub.is_capturing(stream.handle) and last != [count]:
            raise CudaError("planned in a capture")
        last[:] = [count]
        enqueue(slot, count, stream)

    with opened(library, num_slots=1, enqueue=engine) as (_, ring):
        for seed, count in enumerate((1, 3, 1, 3, 1)):
            assert is_right(ring.run(batch(count, seed)), batch(count, seed))
        assert ring.notes == []
    assert stub.calls("cuGraphLaunch") == 3


CALLS_OF_A_BATCH = (
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuGraphLaunch",
    "cuEventRecordWithFlags",
    "cuStreamWaitEvent",
    "cuEventSynchronize",
)


@on_stub
def test_a_lone_batch_is_one_launch(library):
    with opened(library, num_slots=1) as (_, ring):
        for seed in range(3):
            ring.run(batch(2, seed))
        before = [stub.calls(name) for name in CALLS_OF_A_BATCH]
        for seed in range(10):
            assert is_right(ring.run(batch(2, seed)), batch(2, seed))
        after = [stub.calls(name) for name in CALLS_OF_A_BATCH]
    assert [(b - a) / 10 for a, b in zip(before, after, strict=True)] == [0, 0, 1, 1, 0, 1]


@on_stub
def test_batches_in_flight_keep_their_copies_on_streams_of_their_own(library):
    with opened(library, num_slots=2) as (_, ring):
        for _ in range(2):
            tickets = [ring.submit(batch(2, seed)) for seed in range(2)]
            for ticket in tickets:
                ring.collect(ticket)
        ring.submit(batch(2))
        before = [stub.calls(name) for name in CALLS_OF_A_BATCH]
        ring.submit(batch(2, 1))
        after = [stub.calls(name) for name in CALLS_OF_A_BATCH]
        assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2, 1, 3, 2, 0]
        assert is_right(ring.collect(), batch(2))
        assert is_right(ring.collect(), batch(2, 1))


@on_stub(log="cuStreamBeginCapture")
def test_a_failed_capture_costs_the_graph_of_its_size_alone(library):
    with opened(library, num_slots=1) as (_, ring):
        stub.fail("cuStreamBeginCapture")
        for seed in range(4):
            for count in (2, 3):
                frames = batch(count, seed)
                assert is_right(ring.collect(ring.submit(frames)), frames)
        assert len(ring.notes) == 1
        assert "batches of 2 run without a CUDA graph: cuStreamBeginCapture" in ring.notes[0]
        assert stub.calls("cuGraphLaunch") == 3


@on_stub
def test_a_batch_is_submitted_without_waiting_for_the_gpu(library):
    with opened(library, use_graphs=False) as (_, ring):
        for seed in range(3):
            ring.submit(batch(2, seed))
        assert stub.calls("cuEventSynchronize") + stub.calls("cuStreamSynchronize") == 0
        for seed in range(3):
            assert is_right(ring.collect(), batch(2, seed))


@on_stub
def test_nothing_is_allocated_after_the_first_batches(library):
    names = ("cuMemAlloc", "cuMemHostRegister", "cuEventCreate", "cuStreamCreate")
    with opened(library) as (_, ring):
        assert drive(ring, 60) == 0
        before = [stub.calls(name) for name in names]
        assert drive(ring, 60) == 0
        assert [stub.calls(name) for name in names] == before


@on_stub
def test_frames_are_decoded_into_page_locked_memory(library):
    with opened(library) as (_, ring):
        for seed in range(6):
            slot = ring.acquire()
            slot.array[:3] = batch(3, seed)
            assert is_right(ring.collect(ring.submit(slot, num_frames=3)), batch(3, seed))


@on_stub
def test_closing_waits_for_what_is_in_flight(library):
    device = open_device(library)
    ring = SlotRing(device, LAYOUT, enqueue)
    ring.submit(batch(2))
    ring.submit(batch(1))
    ring.close()
    ring.close()
    assert stub.pending() == 0
    device.close()
    device.close()


@on_stub
def test_threads_use_one_ring_at_once(library):
    wrong = []
    with opened(library) as (_, ring):

        def work(seed):
            for number in range(20):
                frames = batch(1 + number % 4, 100 * seed + number)
                wrong.append(not is_right(ring.collect(ring.submit(frames)), frames))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == [False] * 80


@on_stub
def test_one_thread_submits_and_another_collects_the_oldest(library):
    wrong, submitted = [], queue.SimpleQueue()
    with opened(library) as (_, ring):

        def collect():
            while (seed := submitted.get()) is not None:
                wrong.append(not is_right(ring.collect(), batch(1 + seed % 4, seed)))

        collector = threading.Thread(target=collect)
        collector.start()
        for seed in range(60):
            ring.submit(batch(1 + seed % 4, seed))  # waits for a slot
            submitted.put(seed)
        submitted.put(None)
        collector.join()
    assert wrong == [False] * 60


@on_stub(once=True, environment={"CUDA_STUB_SEED": "0"})
def test_a_batch_whose_collection_is_interrupted_stays_in_flight(library):
    """Ctrl-C while the host waits for the GPU; Python raises it when the wait ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    is_running = threading.Event()
    sleep = ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p)

    def slow_engine(slot, count, stream):
        enqueue(slot, count, stream)
        if slot.index == 0:
            stub.launch(stream.handle, is_running.set)
            stub.driver().cuLaunchHostFunc(stream.handle, sleep, 500_000)  # without Python's lock

    def press_ctrl_c():
        is_running.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with opened(library, enqueue=slow_engine, use_graphs=False) as (_, ring):
        tickets = [ring.submit(batch(2, seed)) for seed in range(3)]
        with pytest.raises(KeyboardInterrupt):
            ring.collect(tickets[0])
        for seed, ticket in enumerate(tickets):
            assert is_right(ring.collect(ticket), batch(2, seed))


@on_stub
def test_work_that_fails_while_it_is_captured_ends_the_capture(library):
    device = open_device(library)

    def work():
        raise CudaError("refused")

    with device.current():
        stream = device.new_stream()
        with pytest.raises(CudaError, match="refused"):
            device.capture(stream, work)
        assert not stub.is_capturing(stream.handle)
    device.close()


@on_stub
def test_stages_are_timed_by_the_device(library):
    with opened(library, timing=True) as (_, ring):
        assert drive(ring, 9) == 0
        assert all(stage >= 0 for stage in ring.stage_times_ms())


@on_stub
def test_two_devices_share_the_primary_context(library):
    with opened(library) as (_, first):
        with opened(library) as (_, second):
            assert drive(first) + drive(second) == 0
        assert drive(first) == 0


@on_stub
def test_the_context_may_be_current_already(library):
    device = open_device(library)
    with device.current(), device.current(), SlotRing(device, LAYOUT, enqueue) as ring:
        assert drive(ring) == 0
    device.close()


@on_stub(log="cuMemAlloc.*OUT_OF_MEMORY")
def test_device_memory_has_an_end(library):
    device = open_device(library)
    with device.current():
        _, total = device.memory_bytes()
        with pytest.raises(CudaError, match=r"full: .* MB requested, .* MB free") as caught:
            device.device_buffer(total + 1)
        assert caught.value.hint
    device.close()
