"""Mutants of the ring: each record, wait, synchronisation, copy, launch and context is left out in turn.

Every mutant must be noticed: by a wrong result, an error, a line in the stub's log, or work that never ran.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Callable
from typing import Any

from runtime.cuda.device import CudaDevice, open_device
from runtime.cuda.ring import SlotRing
from tests.cuda_stub import stub
from tests.gpu_rules.rules import LAYOUT, batch, drive, enqueue, is_right, on_stub

HARMLESS = {
    "_free: self._resources.close()": (
        "close() has waited for every batch in flight; only a batch whose start failed halfway needs the wait"
    ),
    "_run: self._compute.synchronize()": (
        "the driver captures behind queued work too; libraries must have finished their set-up of a shape"
    ),
}
"""Mutants that change no result, by the line of the ring whose call is left out, and why they do not."""


def ring_line() -> str:
    """Get the line of the ring that made a call."""
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.endswith("runtime/cuda/ring.py"):
        frame = frame.f_back
    if frame is None:
        return ""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return f"{frame.f_code.co_name}: {line.partition('  #')[0].strip()}"


def intercept(device: CudaDevice, skips: Callable[[str], bool], seen: list[str]) -> None:
    """Note each call that the ring makes, by its line, and leave out those that ``skips`` chooses."""

    def wrap(owner: type, name: str, instead: Callable[[], Any]) -> None:
        real = getattr(owner, name)

        def call(self: Any, *arguments: Any, **settings: Any) -> Any:
            line = ring_line()
            if line and line not in seen:
                seen.append(line)
            return instead() if line and skips(line) else real(self, *arguments, **settings)

        setattr(owner, name, call)

    with device.current():
        stream, event = device.new_stream(), device.new_event()
        graph = device.capture(stream, lambda: enqueue_nothing(stream))
        for item in (graph, event, stream):
            item.free()
    for owner, names in (
        (type(event), ("record", "synchronize")),
        (type(stream), ("wait", "synchronize")),
        (type(graph), ("launch",)),
        (type(device), ("copy_to_device", "copy_to_host")),
    ):
        for name in names:
            wrap(owner, name, lambda: None)
    wrap(type(device), "current", contextlib.nullcontext)


def enqueue_nothing(stream: Any) -> None:
    stub.launch(stream.handle, lambda: None)


def trouble_of(library: str, skipped: str, seen: list[str]) -> list[str]:
    """Run a mutant with and without graphs, and list what goes wrong."""
    device = open_device(library)
    intercept(device, skipped.__eq__, seen)
    troubles = []
    for use_graphs, timing in ((False, True), (True, True), (True, False)):
        try:
            ring = SlotRing(device, LAYOUT, enqueue, use_graphs=use_graphs, timing=timing)
            wrong = drive(ring)
            for seed in range(9):  # alone: copies and engine in one graph
                wrong += not is_right(ring.run(batch(3, seed)), batch(3, seed))
            if wrong:
                troubles.append(f"{wrong} wrong results")
            if ring.notes:
                troubles.append(ring.notes[0])
            if timing:
                ring.stage_times_ms()
            for _ in range(ring.num_slots):
                ring.submit(batch(2))
            ring.close()
            if stub.pending():
                troubles.append(f"{stub.pending()} operations never ran")
        except Exception as error:
            troubles.append(f"{type(error).__name__}: {error}")
    with contextlib.suppress(Exception):
        device.close()
    return troubles


@on_stub(log=".", left=True)
def mutant(library, line):
    seen: list[str] = []
    return {"troubles": trouble_of(library, line, seen), "seen": seen}


def test_every_mutant_is_noticed(gpu):
    answer = gpu.run(mutant, {"line": ""})
    assert answer["error"] is None
    assert answer["result"]["troubles"] == []
    assert answer["log"] == []
    seen = answer["result"]["seen"]
    assert len(seen) >= 14, seen
    survivors = set()
    for line in seen:
        answer = gpu.run(mutant, {"line": line})
        found = [answer["error"], *(answer["result"] or {}).get("troubles", []), *answer["log"]]
        print(line, "->", next((str(trouble) for trouble in found if trouble), "nothing"))
        if not any(found):
            survivors.add(line)
    assert survivors == set(HARMLESS)
