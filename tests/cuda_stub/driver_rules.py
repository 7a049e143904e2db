"""Rules of the CUDA driver that the stub keeps, checked through NVIDIA's cuda-bindings.

``tests/gpu_rules/test_stub_rules.py`` runs this file in a process that loads the stub.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import driver as cu

from tests.cuda_stub import stub

MODE = cu.CUstreamCaptureMode
R = cu.CUresult
NON_BLOCKING = cu.CUstream_flags.CU_STREAM_NON_BLOCKING
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def ok(result):
    """Check that a call succeeded and get its values."""
    assert result[0] == R.CUDA_SUCCESS, result[0]
    return result[1] if len(result) == 2 else list(result[1:])


def fails(result, name):
    assert result[0].name == f"CUDA_ERROR_{name}", result[0].name


@pytest.fixture
def context():
    ok(cu.cuInit(0))
    context = ok(cu.cuDevicePrimaryCtxRetain(0))
    ok(cu.cuCtxPushCurrent(context))
    yield context
    ok(cu.cuCtxPopCurrent())
    cu.cuDevicePrimaryCtxRelease(0)


class Room:
    """A stream, device memory and page-locked memory."""

    def __init__(self, flags=NON_BLOCKING, size=64):
        self.size = size
        self.stream = ok(cu.cuStreamCreate(flags))
        self.memory = ok(cu.cuMemAlloc(size))
        self.address = int(ok(cu.cuMemHostAlloc(size, 0)))
        self.host = (ctypes.c_uint8 * size).from_address(self.address)

    def send(self):
        return cu.cuMemcpyHtoDAsync(self.memory, self.address, self.size, self.stream)

    def fetch(self):
        return cu.cuMemcpyDtoHAsync(self.address, self.memory, self.size, self.stream)


@pytest.fixture
def room(context):
    return Room()


def test_registered_memory_is_page_locked_until_it_is_unregistered(context, room):
    own = np.zeros(64, np.uint8)
    address = own.ctypes.data
    fails(cu.cuMemHostUnregister(address), "HOST_MEMORY_NOT_REGISTERED")
    ok(cu.cuMemHostRegister(address, 64, 0))
    fails(cu.cuMemHostRegister(address + 8, 8, 0), "HOST_MEMORY_ALREADY_REGISTERED")
    room.host[:] = [7] * 64
    ok(room.send())
    ok(cu.cuMemcpyDtoHAsync(address, room.memory, 64, room.stream))
    assert own.sum() == 0, "the copy waited, as for pageable memory"
    ok(cu.cuStreamSynchronize(room.stream))
    fails(cu.cuMemFreeHost(address), "INVALID_VALUE")
    ok(cu.cuMemHostUnregister(address))
    assert own.sum() == 7 * 64
    ok(cu.cuMemcpyDtoHAsync(address, room.memory, 64, room.stream))  # pageable again


def test_calls_need_a_context(context):
    ok(cu.cuCtxPopCurrent())
    fails(cu.cuMemAlloc(4), "INVALID_CONTEXT")
    fails(cu.cuStreamCreate(0), "INVALID_CONTEXT")
    ok(cu.cuCtxPushCurrent(context))


def test_a_context_is_current_for_one_thread(context):
    results = []
    thread = threading.Thread(target=lambda: results.append(cu.cuMemAlloc(4)))
    thread.start()
    thread.join()
    fails(results[0], "INVALID_CONTEXT")


def test_the_last_release_destroys_what_is_current(context):
    other = ok(cu.cuDevicePrimaryCtxRetain(0))
    assert int(other) == int(context)
    ok(cu.cuDevicePrimaryCtxRelease(0))
    ok(cu.cuMemAlloc(4))
    ok(cu.cuDevicePrimaryCtxRelease(0))
    fails(cu.cuMemAlloc(4), "CONTEXT_IS_DESTROYED")


def test_work_runs_when_it_is_waited_for(room):
    room.host[:] = bytes(range(64))
    ok(room.send())
    assert stub.pending() == 1
    room.host[0] = 99  # too early: the copy has not run
    ok(cu.cuStreamSynchronize(room.stream))
    room.host[0] = 0
    ok(room.fetch())
    ok(cu.cuStreamSynchronize(room.stream))
    assert room.host[0] == 99


def test_an_asynchronous_copy_from_pageable_memory_takes_what_is_there_now(room):
    plain = (ctypes.c_uint8 * 64)(7)
    ok(cu.cuMemcpyHtoDAsync(room.memory, ctypes.addressof(plain), 64, room.stream))
    plain[0] = 8
    ok(room.fetch())
    ok(cu.cuStreamSynchronize(room.stream))
    assert room.host[0] == 7


def test_events_alone_order_streams(context):
    first, second = Room(), Room()
    first.host[0] = 5
    ok(first.send())
    event = ok(cu.cuEventCreate(2))
    ok(cu.cuEventRecord(event, first.stream))
    ok(cu.cuMemcpyDtoHAsync(second.address, first.memory, 64, second.stream))
    ok(cu.cuStreamSynchronize(second.stream))
    assert second.host[0] == 0xA5  # nobody waited: fresh device memory
    ok(cu.cuStreamWaitEvent(second.stream, event, 0))
    ok(cu.cuMemcpyDtoHAsync(second.address, first.memory, 64, second.stream))
    ok(cu.cuStreamSynchronize(second.stream))
    assert second.host[0] == 5


def test_the_legacy_stream_waits_for_blocking_streams_and_not_for_others(context):
    for flags, pending in ((0, 0), (NON_BLOCKING, 1)):
        room = Room(flags)
        ok(room.send())
        ok(cu.cuMemsetD8(ok(cu.cuMemAlloc(4)), 0, 4))
        assert stub.pending() == pending
        ok(cu.cuStreamSynchronize(room.stream))


def test_copies_stay_within_their_memory(room):
    fails(cu.cuMemcpyHtoDAsync(room.memory, room.address, 65, room.stream), "INVALID_VALUE")
    fails(
        cu.cuMemcpyHtoDAsync(room.address + 4096 * 99, room.address, 4, room.stream),
        "INVALID_VALUE",
    )
    ok(cu.cuMemFree(room.memory))
    fails(room.send(), "INVALID_VALUE")
    fails(cu.cuMemFree(room.memory), "INVALID_VALUE")


def test_memory_is_limited(context):
    total = ok(cu.cuMemGetInfo())[1]
    fails(cu.cuMemAlloc(total + 1), "OUT_OF_MEMORY")


def test_events_time_what_was_reached_and_may_be_timed(room):
    first, second, untimed = (
        ok(cu.cuEventCreate(0)),
        ok(cu.cuEventCreate(0)),
        ok(cu.cuEventCreate(2)),
    )
    fails(cu.cuEventElapsedTime(first, second), "INVALID_HANDLE")
    ok(cu.cuEventRecord(first, room.stream))
    ok(room.send())
    ok(cu.cuEventRecord(second, room.stream))
    fails(cu.cuEventElapsedTime(first, second), "NOT_READY")
    ok(cu.cuEventSynchronize(second))
    assert ok(cu.cuEventElapsedTime(first, second)) > 0
    fails(cu.cuEventElapsedTime(first, untimed), "INVALID_HANDLE")


def test_destroyed_handles_are_refused(room):
    event = ok(cu.cuEventCreate(0))
    ok(cu.cuEventDestroy(event))
    fails(cu.cuEventRecord(event, room.stream), "INVALID_HANDLE")
    ok(cu.cuStreamDestroy(room.stream))
    fails(cu.cuStreamSynchronize(room.stream), "INVALID_HANDLE")


def captured(room, mode=MODE.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL):
    ok(cu.cuStreamBeginCapture(room.stream, mode))


def test_captured_work_runs_only_when_launched(room):
    room.host[0] = 1
    captured(room)
    ok(room.send())
    graph = ok(cu.cuStreamEndCapture(room.stream))
    assert stub.pending() == 0
    exec_ = ok(cu.cuGraphInstantiate(graph, 0))
    ok(cu.cuGraphDestroy(graph))
    for value in (2, 3):
        room.host[0] = value
        ok(cu.cuGraphLaunch(exec_, room.stream))
        ok(cu.cuStreamSynchronize(room.stream))
        room.host[0] = 0
        ok(room.fetch())
        ok(cu.cuStreamSynchronize(room.stream))
        assert room.host[0] == value


@pytest.mark.parametrize(
    "call",
    [
        lambda room: cu.cuStreamSynchronize(room.stream),
        lambda room: cu.cuStreamQuery(room.stream),
        lambda room: cu.cuMemAlloc(4),
        lambda room: cu.cuMemHostAlloc(4, 0),
        lambda room: cu.cuMemHostRegister(room.address + 4096, 4, 0),
        lambda room: cu.cuMemFree(room.memory),
        lambda room: cu.cuCtxSynchronize(),
        lambda room: cu.cuMemcpyHtoD(room.memory, room.address, 4),
    ],
)
def test_calls_that_wait_invalidate_a_capture(room, call):
    captured(room)
    fails(call(room), "STREAM_CAPTURE_UNSUPPORTED")
    fails(room.send(), "STREAM_CAPTURE_INVALIDATED")
    fails(cu.cuStreamEndCapture(room.stream), "STREAM_CAPTURE_INVALIDATED")
    ok(room.send())  # the stream can be used again
    ok(cu.cuStreamSynchronize(room.stream))


@pytest.mark.parametrize(
    ("mode", "invalidates"), [("GLOBAL", True), ("THREAD_LOCAL", False), ("RELAXED", False)]
)
def test_other_threads_may_allocate_unless_a_capture_is_global(context, room, mode, invalidates):
    results = []

    def other():
        ok(cu.cuCtxPushCurrent(context))
        results.append(cu.cuMemAlloc(4))
        ok(cu.cuCtxPopCurrent())

    captured(room, getattr(MODE, f"CU_STREAM_CAPTURE_MODE_{mode}"))
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (results[0][0] == R.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) is invalidates
    status, graph = cu.cuStreamEndCapture(room.stream)
    assert (status != R.CUDA_SUCCESS) is invalidates
    assert invalidates or ok(cu.cuGraphDestroy(graph)) == []


def test_a_capture_ends_in_its_stream_and_thread_with_all_streams_joined(context):
    first, second = Room(), Room()
    event = ok(cu.cuEventCreate(2))
    fails(cu.cuStreamEndCapture(first.stream), "ILLEGAL_STATE")
    captured(first)
    ok(cu.cuEventRecord(event, first.stream))
    fails(cu.cuEventSynchronize(event), "CAPTURED_EVENT")
    ok(cu.cuStreamWaitEvent(second.stream, event, 0))  # joins the capture
    ok(second.send())
    results = []
    thread = threading.Thread(
        target=lambda: (
            cu.cuCtxPushCurrent(context),
            results.append(cu.cuStreamEndCapture(first.stream)),
            cu.cuCtxPopCurrent(),
        )
    )
    thread.start()
    thread.join()
    fails(results[0], "STREAM_CAPTURE_WRONG_THREAD")
    fails(cu.cuStreamEndCapture(first.stream), "STREAM_CAPTURE_UNJOINED")


def test_a_capture_cannot_wait_for_work_outside(context):
    first, second = Room(), Room()
    event = ok(cu.cuEventCreate(2))
    ok(second.send())
    ok(cu.cuEventRecord(event, second.stream))
    captured(first)
    fails(cu.cuStreamWaitEvent(first.stream, event, 0), "STREAM_CAPTURE_ISOLATION")
    fails(cu.cuStreamEndCapture(first.stream), "STREAM_CAPTURE_INVALIDATED")


def test_host_functions_may_not_call_back(room):
    results = []
    function = HOST_FUNCTION(lambda _: results.append(cu.cuMemAlloc(4)))
    ok(cu.cuLaunchHostFunc(room.stream, ctypes.cast(function, ctypes.c_void_p).value, 0))
    ok(cu.cuStreamSynchronize(room.stream))
    fails(results[0], "NOT_PERMITTED")


@pytest.fixture
def fail():
    yield stub.fail
    stub.fail_never()


def test_an_injected_error_is_returned_once(room, fail):
    fail("cuEventCreate", 2, 999)
    ok(cu.cuEventDestroy(ok(cu.cuEventCreate(0))))
    fails(cu.cuEventCreate(0), "UNKNOWN")
    ok(cu.cuEventDestroy(ok(cu.cuEventCreate(0))))


def test_a_call_that_gives_back_does_its_work_and_returns_the_injected_error(room, fail):
    before = stub.live("device")
    fail("cuMemFree", 1, 999)
    fails(cu.cuMemFree(room.memory), "UNKNOWN")
    assert stub.live("device") == before - room.size


def test_memory_that_is_freed_before_queued_work_has_run_is_logged(room):
    log = Path(os.environ["CUDA_STUB_LOG"])
    before = log.read_text()
    ok(room.send())
    ok(cu.cuMemFree(room.memory))
    assert "memory is freed before queued work has run" in log.read_text()[len(before) :]


def test_a_forked_process_cannot_use_the_driver(room):
    child = os.fork()
    if child == 0:
        results = cu.cuInit(0)[0], cu.cuStreamSynchronize(room.stream)[0]
        os._exit(0 if set(results) == {R.CUDA_ERROR_NOT_INITIALIZED} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ok(cu.cuStreamSynchronize(room.stream))


def test_an_injected_fault_is_sticky_and_comes_late(room, fail):
    fail("cuMemcpyHtoDAsync", 1, 700)
    ok(room.send())
    fails(cu.cuStreamSynchronize(room.stream), "ILLEGAL_ADDRESS")
    fails(cu.cuMemAlloc(4), "ILLEGAL_ADDRESS")


def test_nothing_is_left():
    assert stub.left() == {}
