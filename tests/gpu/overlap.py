"""How much copies and compute of neighbouring batches overlap, from CUDA events."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from runtime.cuda.ring import SlotRing
from runtime.slots import Ticket

EXPECTED_OVERLAP = 0.3
"""Share of the busy time in which two stages should run; recorded beside the measured one, never asserted."""
_STAGES = 3  # copy in, compute, copy out

Marks = tuple[float, ...]
"""Times in ms at which a batch entered the ring, was copied in, was computed, and was copied out."""


class StageClock(AbstractContextManager["StageClock"]):
    """Keeps the event times of a ring's batches, in ms since its start; the ring needs ``timing=True``.

    The batch that the ring collected last must have run alone: its stage times tell work from waiting.
    """

    def __init__(self, ring: SlotRing) -> None:
        self._ring, self._device = ring, ring._device
        self._alone = ring.stage_times_ms()
        self.batches: list[Marks] = []
        with self._device.current():
            self._start = self._device.new_event(timing=True)
            self._start.record(ring._in)

    def add(self, ticket: Ticket) -> None:
        """Add a batch that was collected, before its slot is submitted again."""
        slot = ticket._slot
        events = (slot.started, slot.copied_in, slot.computed, slot.copied_out)
        with self._device.current():
            self.batches.append(tuple(event.ms_since(self._start) for event in events))

    def figures(self) -> dict[str, object]:
        """Get the overlap, and the one that is expected."""
        overlap = round(overlap_of(self.batches, self._alone), 3)
        return {"overlap": overlap, "overlap_is_as_expected": overlap >= EXPECTED_OVERLAP}

    def __exit__(self, *_: object) -> None:
        with self._device.current():
            self._start.free()


def overlap_of(batches: Iterable[Marks], alone: Marks) -> float:
    """Compute the share of the busy time in which at least two stages ran at once, 0 to 1.

    Waiting in a queue does not count: a stage ran for as long before its end as it takes in a batch that runs
    alone, and not before the same stage of the last batch ended.

    Args:
        batches: Times of each batch, in order.
        alone: Duration in ms of each stage in a batch that ran alone.
    """
    edges: list[tuple[float, int]] = []
    ends = [float("-inf")] * _STAGES
    for marks in batches:
        for stage in range(_STAGES):
            end = marks[stage + 1]
            start = max(marks[stage], ends[stage], end - alone[stage])
            if end > start:
                edges += [(start, 1), (end, -1)]
            ends[stage] = max(end, ends[stage])
    busy = overlapped = last = 0.0
    running = 0
    for time, change in sorted(edges):
        busy += (time - last) * (running >= 1)
        overlapped += (time - last) * (running >= 2)
        running, last = running + change, time
    return overlapped / busy if busy else 0.0
