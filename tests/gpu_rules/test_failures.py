"""Every driver call fails once, at each place where the ring and the device make it.

The caller must get an ``EsnetError`` with a hint. Nothing may stay allocated or current, and the next open
must work.
"""

from __future__ import annotations

import gc
import os
import re
import tempfile
from typing import Any

import pytest

from runtime.cuda.device import open_device
from runtime.cuda.ring import SlotRing
from tests.cuda_stub import stub
from tests.gpu_rules.rules import (
    LAYOUT,
    batch,
    drive,
    enqueue,
    in_environments,
    is_right,
    on_stub,
    opened,
    untyped,
)

OUT_OF_MEMORY, UNKNOWN, ILLEGAL_ADDRESS, LAUNCH_FAILED = 2, 999, 700, 719
CALLS = (
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetPCIBusId",
    "cuDeviceGetAttribute",
    "cuDeviceComputeCapability",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent",
    "cuStreamCreateWithPriority",
    "cuEventCreate",
    "cuMemHostRegister",
    "cuMemAlloc",
    "cuMemGetInfo",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuEventRecordWithFlags",
    "cuStreamWaitEvent",
    "cuLaunchHostFunc",
    "cuStreamBeginCapture",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuEventSynchronize",
    "cuStreamSynchronize",
    "cuEventElapsedTime",
    "cuCtxPopCurrent",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuStreamDestroy",
    "cuEventDestroy",
    "cuMemFree",
    "cuMemHostUnregister",
    "cuDevicePrimaryCtxRelease",
)


def use(library: str) -> tuple[list[BaseException], int, list[str]]:
    """Open, run and close twice; get the errors, the number of wrong results, and the ring's notes."""
    errors: list[BaseException] = []
    made: list[Any] = []
    wrong, notes = 0, []
    try:
        made.append(device := open_device(library))
        made.append(ring := SlotRing(device, LAYOUT, enqueue, num_slots=2, timing=True))
        notes = ring.notes
        with device.current():
            device.memory_bytes()
        wrong = drive(
            ring, 5, count=2
        )  # each slot runs a batch directly and captures it, then replays
        ring.stage_times_ms()
        made.append(ring := SlotRing(device, LAYOUT, enqueue, num_slots=1))
        for seed in range(3):  # directly, as a new graph with the copies, replayed
            wrong += not is_right(ring.run(batch(2, seed)), batch(2, seed))
        notes += ring.notes
    except Exception as error:
        errors.append(error)
    for item in reversed(made):
        for _ in range(2):
            try:
                item.close()
            except Exception as error:
                errors.append(error)
    return errors, wrong, notes


@on_stub(log=".", left=True)
def count_calls(library, name):
    assert use(library)[:2] == ([], 0)
    return stub.calls(name)


@on_stub(log=".", left=True)
def fail_once(library, name, nth, code):
    # An allocation fails twice: PyCUDA collects garbage and tries again.
    stub.fail(name, nth, code, times=2 if code == OUT_OF_MEMORY else 1)
    with tempfile.TemporaryFile("w+") as warnings:
        os.dup2(warnings.fileno(), 2)
        errors, wrong, notes = use(library)
        gc.collect()
        warnings.seek(0)
        notes += re.findall(r"PyCUDA WARNING: .*", warnings.read())  # its destructors do not raise
    stub.fail_never()
    troubles = [f"{wrong} wrong results"] if wrong else []
    troubles += [problem for error in errors if (problem := untyped(error))]
    if not errors and not notes:
        troubles.append("nobody is told")
    troubles += [f"left: {kind}" for kind in stub.left()]
    is_current = stub.current() is not None
    if code in (OUT_OF_MEMORY, UNKNOWN):
        with opened(library, num_slots=1) as (_, ring):
            assert drive(ring, 2) == 0
    return {"troubles": troubles, "is_current": is_current}


_answers: dict[tuple[object, str], list[dict[str, Any]]] = {}


def sweep(gpu: Any, name: str) -> list[dict[str, Any]]:
    """Let each call of a function fail in turn, once for each environment, and get what happened."""
    if (gpu, name) not in _answers:
        code = OUT_OF_MEMORY if name in ("cuMemAlloc", "cuMemHostRegister") else UNKNOWN
        count = gpu.check(count_calls, {"name": name})
        _answers[gpu, name] = [
            gpu.check(fail_once, {"name": name, "nth": nth, "code": code})
            for nth in range(1, count + 1)
        ]
    return _answers[gpu, name]


@in_environments(once=True)
@pytest.mark.parametrize("name", CALLS)
def test_a_failing_call_is_told_and_leaves_nothing(gpu, name):
    troubles = [
        f"call {nth}: {trouble}"
        for nth, answer in enumerate(sweep(gpu, name), 1)
        for trouble in answer["troubles"]
    ]
    assert troubles == []


@in_environments(once=True)
def test_no_context_stays_current_after_a_failure(gpu):
    assert [name for name in CALLS if any(a["is_current"] for a in sweep(gpu, name))] == []


@on_stub(log=".", environment={"CUDA_STUB_TRACE": "1"})
def trace(library):
    assert use(library)[0] == []


@in_environments(once=True)
def test_every_call_is_in_the_sweep(gpu):
    log = gpu.run(trace, {})["log"]
    lines = [re.fullmatch(r"\[cuda_stub \d+\] (cu\w+?)(_v\d)?", line) for line in log]
    called = {line[1] for line in lines if line} - {"cuCtxGetCurrent"}
    other = {"pycuda": "cuDeviceGetAttribute", "cuda-bindings": "cuDeviceComputeCapability"}
    assert called == set(CALLS) - {other[gpu.library]}


@pytest.mark.parametrize("code", [ILLEGAL_ADDRESS, LAUNCH_FAILED])
@pytest.mark.parametrize("name", ["cuLaunchHostFunc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"])
@on_stub(log=".")
def test_a_lost_gpu_is_told_and_everything_can_be_closed(library, name, code):
    stub.fail(name, 1, code)
    errors, wrong, _ = use(library)
    assert wrong == 0
    assert errors
    assert [problem for error in errors if (problem := untyped(error))] == []
    assert any("restart" in error.hint for error in errors), errors
