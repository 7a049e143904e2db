"""Contexts, threads, processes, and the order in which things are closed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref

import pytest

from runtime.cuda.device import open_device
from runtime.cuda.ring import SlotRing
from runtime.errors import BackendUnavailable, CudaError, EsnetError, InvalidInput
from tests.cuda_stub import stub
from tests.gpu_rules.rules import LAYOUT, batch, drive, enqueue, is_right, on_stub, opened, untyped


def in_thread(function) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@on_stub
def test_no_context_is_current_after_close(library):
    with opened(library) as (_, ring):
        assert drive(ring) == 0
        assert stub.current() is None
    assert stub.current() is None
    assert not stub.primary_is_active()


@on_stub
def test_another_thread_may_close(library):
    device = open_device(library)
    ring = SlotRing(device, LAYOUT, enqueue)
    assert drive(ring, 8) == 0
    in_thread(ring.close)
    in_thread(device.close)
    assert stub.current() is None
    assert not stub.primary_is_active()


@on_stub
def test_the_context_of_another_library_stays_current(library):
    other = stub.new_context()
    with opened(library) as (_, ring):
        assert drive(ring) == 0
        assert stub.current() == other
    assert stub.current() == other
    assert stub.driver().cuCtxDestroy_v2(other) == 0


@on_stub
def test_another_user_of_the_primary_context_keeps_it(library):
    driver, context = stub.driver(), ctypes.c_void_p()
    assert driver.cuInit(0) == 0
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert driver.cuCtxSetCurrent(context) == 0
    with opened(library) as (_, ring):
        assert drive(ring) == 0
    assert stub.primary_is_active()
    assert stub.current() == context.value
    assert driver.cuCtxSynchronize() == 0
    assert driver.cuDevicePrimaryCtxRelease_v2(0) == 0
    driver.cuCtxPopCurrent_v2(None)


@on_stub
def test_a_hundred_rings_leave_nothing(library):
    for number in range(100):
        with opened(library, num_slots=1) as (_, ring):
            assert is_right(ring.collect(ring.submit(batch(1, number))), batch(1, number))
        assert not stub.primary_is_active()
        while stub.current():  # what PyCUDA's detach() leaves has a test of its own
            stub.driver().cuCtxPopCurrent_v2(None)
    assert stub.calls("cuDevicePrimaryCtxRetain") == stub.calls("cuDevicePrimaryCtxRelease") == 100


@on_stub(log="NOT_INITIALIZED|INVALID_CONTEXT")
def test_a_forked_process_is_refused_and_does_no_harm(library):
    with opened(library) as (_, ring):
        assert drive(ring) == 0
        child = os.fork()
        if child == 0:
            problems = 0
            for use in (lambda: open_device(library), lambda: ring.submit(batch(1))):
                try:
                    use()
                    problems += 1
                except Exception as error:
                    problems += untyped(error) is not None
            os._exit(problems)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert drive(ring) == 0


@on_stub(environment={"CUDA_STUB_DEVICES": "2"})
def test_the_second_gpu_has_a_context_of_its_own(library):
    first, second = open_device(library), open_device(library, index=1)
    assert [gpu.pci_bus_id for gpu in (first, second)] == ["0000:01:00.0", "0000:02:00.0"]
    with (
        SlotRing(first, LAYOUT, enqueue) as one,
        SlotRing(second, LAYOUT, enqueue) as two,
    ):
        assert drive(one) + drive(two) == 0
    second.close()
    first.close()
    with pytest.raises(InvalidInput, match="no GPU cuda:2: CUDA lists 2") as caught:
        open_device(library, index=2)
    assert untyped(caught.value) is None


@on_stub(environment={"CUDA_STUB_DEVICES": "0"}, log="NO_DEVICE|cuCtxGetCurrent.*NOT_INITIALIZED")
def test_a_machine_without_a_gpu_says_so(library):
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver or no GPU") as caught:
        open_device(library)
    assert untyped(caught.value) is None


@on_stub
def test_the_device_may_be_closed_before_its_ring(library):
    device = open_device(library)
    ring = SlotRing(device, LAYOUT, enqueue)
    assert drive(ring, 8) == 0
    device.close()
    ring.close()


@on_stub
def test_closing_the_device_waits_for_its_rings(library):
    device = open_device(library)
    ring = SlotRing(device, LAYOUT, enqueue)
    for _ in range(ring.num_slots):
        ring.submit(batch(2))
    device.close()  # the log would say if memory were freed before the work has run
    assert stub.pending() == 0
    ring.close()
    with pytest.raises(EsnetError, match="is closed") as caught:
        ring.submit(batch(1))
    assert untyped(caught.value) is None


@on_stub
def test_a_freed_resource_refuses_with_an_error_of_ours(library):
    device = open_device(library)
    with device.current():
        stream, event = device.new_stream(), device.new_event()
    stream.free()
    for use in (stream.synchronize, lambda: event.record(stream)):
        with device.current(), pytest.raises(CudaError, match="this Stream was freed") as caught:
            use()
        assert untyped(caught.value) is None
    device.close()
    with pytest.raises(CudaError, match="this Event was freed"):
        event.synchronize()


@on_stub(log="cuCtxPushCurrent.*INVALID_CONTEXT")
def test_a_closed_device_refuses_with_an_error_of_ours(library):
    device = open_device(library)
    device.close()
    with pytest.raises(EsnetError) as caught, device.current():
        pass
    assert untyped(caught.value) is None


@on_stub
def test_results_outlive_the_ring(library):
    with opened(library) as (_, ring):
        results = ring.collect(ring.submit(batch(2)))
    assert is_right(results, batch(2))


@on_stub
def test_a_closed_ring_keeps_no_host_memory(library):
    device = open_device(library)
    with SlotRing(device, LAYOUT, enqueue) as ring:
        assert is_right(ring.collect(ring.submit(batch(2))), batch(2))
        memory = [weakref.ref(slot.pinned_input.array) for slot in ring._slots]

    assert [alive for alive in memory if alive() is not None] == []
    device.close()


@on_stub(log="INVALID_CONTEXT")
def test_memory_freed_without_a_context_is_freed_with_the_device(library):
    device = open_device(library)
    with device.current():
        buffers = [device.device_buffer(64), device.pinned_buffer(64)]
    for buffer in buffers:
        with contextlib.suppress(CudaError):
            buffer.free()
    device.close()  # the log would say if the context were destroyed with memory in it


@on_stub(log="cuMemHostRegister")
def test_a_failed_page_locked_allocation_speaks_of_host_memory(library):
    device = open_device(library)
    with device.current():
        stub.fail("cuMemHostRegister", code=2, times=2)
        with pytest.raises(CudaError) as caught:
            device.pinned_buffer(3_000_000)
        stub.fail_never()
    device.close()
    text = f"{caught.value} {caught.value.hint}"
    assert "host memory" in text
    assert "GPU memory" not in text
    assert "3.0 MB" in text


@on_stub
def test_the_driver_is_loaded_once(library):
    loads = []
    real = ctypes.CDLL
    ctypes.CDLL = lambda *names, **options: loads.append(names) or real(*names, **options)
    with opened(library) as (_, ring):
        assert drive(ring) == 0
    assert len(loads) <= 1
