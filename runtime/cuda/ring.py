"""A ring of slots: page-locked host memory, device memory and events, so that neighbouring batches overlap.

Three streams carry copies in, the engine, and copies out. A slot passes them in order, held together by
events; while one slot computes, the next is copied in and the one before is copied out. Nothing is allocated
for a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from runtime.backends.base import TensorSpec
from runtime.cuda.device import CudaDevice, DeviceBuffer, Graph, PinnedBuffer, Stream
from runtime.errors import CudaError, InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLayout:
    """What a slot holds; the first axis of every shape is the batch."""

    input: TensorSpec
    """What goes in."""
    outputs: tuple[TensorSpec, ...]
    """What comes out."""
    max_batch: int
    """Frames a slot has room for."""


class _Freed(Protocol):
    def free(self) -> None: ...


Made = list[_Freed]
_T = TypeVar("_T", bound=_Freed)


class Slot:
    """One batch's memory."""

    def __init__(
        self, device: CudaDevice, layout: SlotLayout, index: int, made: Made, *, timing: bool
    ) -> None:
        self.index = index
        """Position in the ring."""
        self.pinned_input, self.input, self.input_buffer = _buffers(
            device, layout, layout.input, made
        )
        outputs = [_buffers(device, layout, spec, made) for spec in layout.outputs]
        self.pinned_outputs: tuple[PinnedBuffer, ...] = tuple(entry[0] for entry in outputs)
        self.outputs: tuple[np.ndarray, ...] = tuple(entry[1] for entry in outputs)
        """Views of page-locked memory, (max_batch, ...) of each output."""
        self.output_buffers: tuple[DeviceBuffer, ...] = tuple(entry[2] for entry in outputs)
        """Device memory of each output."""
        marks = [_kept(device.new_event(timing=timing), made) for _ in range(4)]
        self.started, self.copied_in, self.computed, self.copied_out = marks
        self.num_frames = 0
        self.ticket = -1
        self.graphs: dict[int, Graph] = {}
        self.warm_sizes: set[int] = set()


Enqueue = Callable[[Slot, int, Stream], None]
"""Puts the engine's work for (slot, number of frames) on the compute stream."""


class SlotRing:
    """Slots that are submitted and collected in turn.

    May be used from any thread; calls take turns. Between ``submit`` and ``collect`` a slot's input must not
    be touched. What ``collect`` returns are views, valid until that slot is submitted again: with n slots,
    until n - 1 further batches were submitted.
    """

    def __init__(
        self,
        device: CudaDevice,
        layout: SlotLayout,
        enqueue: Enqueue,
        *,
        num_slots: int = 3,
        use_graphs: bool = True,
        compute_stream: Stream | None = None,
        timing: bool = False,
    ) -> None:
        """Allocate all memory.

        Args:
            device: The GPU; the ring does not close it.
            layout: What a slot holds.
            enqueue: Puts the engine's work on a stream.
            num_slots: Batches in flight.
            use_graphs: Whether to replay each batch size as a CUDA graph from its third time on.
            compute_stream: Stream of the engine; ``None`` makes one.
            timing: Whether ``stage_times_ms`` is wanted.

        Raises:
            CudaError: Out of memory; nothing stays allocated.
        """
        if num_slots < 1:
            raise InvalidInput(f"a ring needs at least 1 slot, got {num_slots}")
        self.layout, self.num_slots = layout, num_slots
        self.notes: list[str] = []
        """What its user should know: that graphs could not be used, and why."""
        self._device, self._enqueue = device, enqueue
        self._use_graphs, self._timing = use_graphs, timing
        self._lock = threading.RLock()
        self._next_ticket = 0
        self._problem: str | None = None
        self._made: Made = []
        self._streams: list[Stream] = []
        self._slots: list[Slot] = []
        self._last: Slot | None = None
        try:
            with device.current():
                self._in, self._out = self._new_stream(), self._new_stream()
                self._compute = compute_stream or self._new_stream()
                for index in range(num_slots):
                    self._slots.append(Slot(device, layout, index, self._made, timing=timing))
        except BaseException:
            self.close()
            raise

    @property
    def free_slots(self) -> int:
        """Count the slots that can be submitted now."""
        return sum(slot.ticket < 0 for slot in self._slots)

    def next_input(self) -> np.ndarray:
        """Get the page-locked input (max_batch, ...) of the slot that ``submit`` takes next, to decode into.

        Raises:
            InvalidInput: Every slot is in flight.
        """
        with self._lock:
            return self._free_slot().input

    def submit(self, batch: np.ndarray | None = None, *, num_frames: int | None = None) -> int:
        """Start a batch and return at once.

        Args:
            batch: As the layout's input says, at most ``max_batch`` frames; it is copied. ``None``: the
                frames are in ``next_input()`` already.
            num_frames: How many are there, where ``batch`` is ``None``; all of them by default.

        Returns:
            The ticket to collect it by.

        Raises:
            InvalidInput: Every slot is in flight, or the batch does not fit.
            CudaError: A CUDA call failed; the ring can only be closed then.
        """
        with self._lock, self._device.current():
            slot = self._free_slot()
            count = self._filled(slot, batch, num_frames)
            try:
                self._start(slot, count)
            except BaseException as error:
                self._problem = str(error)
                raise
            slot.num_frames, slot.ticket = count, self._next_ticket
            self._next_ticket += 1
            return slot.ticket

    def collect(self, ticket: int | None = None) -> tuple[np.ndarray, ...]:
        """Wait for a batch, the oldest by default, and get its outputs.

        Returns:
            One view an output, (frames, ...); valid until its slot is submitted again.

        Raises:
            InvalidInput: Nothing is in flight, or no batch of this ticket.
            CudaError: The GPU failed meanwhile; the ring can only be closed then.
        """
        with self._lock, self._device.current():
            slot = self._flying(ticket)
            try:
                slot.copied_out.synchronize()
            except CudaError as error:
                self._problem = str(error)
                raise
            slot.ticket, self._last = -1, slot
            return tuple(array[: slot.num_frames] for array in slot.outputs)

    def stage_times_ms(self) -> tuple[float, float, float]:
        """Measure copy in, compute and copy out of the batch that was collected last, by device clocks.

        Raises:
            InvalidInput: The ring was made without ``timing``, or nothing was collected.
        """
        if not self._timing or self._last is None:
            raise InvalidInput("stage times need SlotRing(timing=True) and a collected batch")
        slot = self._last
        with self._lock, self._device.current():
            marks = (slot.started, slot.copied_in, slot.computed, slot.copied_out)
            first, second, third = (later.ms_since(earlier) for earlier, later in pairwise(marks))
            return first, second, third

    def close(self) -> None:
        """Wait for what is in flight and free everything; a second call does nothing."""
        with self._lock:
            made, self._made, self._slots = self._made, [], []
            streams, self._streams = self._streams, []
            if not made:
                return
            self._problem = "it is closed"
            with self._device.current():
                errors = _each(stream.synchronize for stream in streams)
                errors += _each(item.free for item in reversed(made))
            if errors:
                raise errors[0]

    def __enter__(self) -> SlotRing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, slot: Slot, count: int) -> None:
        """Enqueue copy in, engine and copy out. The slot's last batch was collected: its memory is free."""
        device, layout = self._device, self.layout
        if self._timing:
            slot.started.record(self._in)
        device.copy_to_device(
            slot.input_buffer, slot.pinned_input, count * _item_bytes(layout.input), self._in
        )
        slot.copied_in.record(self._in)
        self._compute.wait(slot.copied_in)
        self._run(slot, count)
        slot.computed.record(self._compute)
        self._out.wait(slot.computed)
        for spec, pinned, memory in zip(
            layout.outputs, slot.pinned_outputs, slot.output_buffers, strict=True
        ):
            device.copy_to_host(pinned, memory, count * _item_bytes(spec), self._out)
        slot.copied_out.record(self._out)

    def _run(self, slot: Slot, count: int) -> None:
        """Run the engine: plainly the first time, captured the second, replayed from then on."""
        if not self._use_graphs:
            self._enqueue(slot, count, self._compute)
        elif count in slot.graphs:
            slot.graphs[count].launch(self._compute)
        elif count not in slot.warm_sizes:
            self._enqueue(slot, count, self._compute)
            self._compute.synchronize()  # a library may allocate in its first run of a shape
            slot.warm_sizes.add(count)
        else:
            self._capture(slot, count)

    def _capture(self, slot: Slot, count: int) -> None:
        try:
            graph = self._device.capture(
                self._compute, lambda: self._enqueue(slot, count, self._compute)
            )
        except CudaError as error:
            self._use_graphs = False
            self.notes.append(f"CUDA graphs are not used: {error}")
            self._enqueue(slot, count, self._compute)
            return
        slot.graphs[count] = _kept(graph, self._made)
        graph.launch(self._compute)

    def _filled(self, slot: Slot, batch: np.ndarray | None, num_frames: int | None) -> int:
        """Check a batch and copy it into the slot; get its number of frames."""
        most = self.layout.max_batch
        if batch is not None:
            self.layout.input.check(batch)
        count = batch.shape[0] if batch is not None else most if num_frames is None else num_frames
        if not 1 <= count <= most:
            raise InvalidInput(
                f"batch of {count} frames, a slot has room for 1 to {most}",
                hint=f"build the engine with --batch 1:{most}:{max(count, most)}"
                if count
                else None,
            )
        if batch is not None:
            np.copyto(slot.input[:count], batch)
        return count

    def _free_slot(self) -> Slot:
        self._require_open()
        slot = self._slots[self._next_ticket % self.num_slots]
        if slot.ticket >= 0:
            raise InvalidInput(
                f"slot {slot.index} of {self.num_slots} is still in flight",
                hint="collect() the oldest batch first, or make the ring with more slots",
            )
        return slot

    def _flying(self, ticket: int | None) -> Slot:
        self._require_open()
        flying = [slot for slot in self._slots if slot.ticket >= 0]
        if ticket is None and flying:
            return min(flying, key=lambda slot: slot.ticket)
        for slot in flying:
            if slot.ticket == ticket:
                return slot
        which = "" if ticket is None else f" of ticket {ticket}"
        what = f"no batch{which} is in flight"
        raise InvalidInput(what, hint="each ticket of submit() is collected once")

    def _require_open(self) -> None:
        if self._problem is not None:
            raise InvalidInput(
                f"the ring cannot be used: {self._problem}", hint="open the artefact again"
            )

    def _new_stream(self) -> Stream:
        stream = _kept(self._device.new_stream(), self._made)
        self._streams.append(stream)
        return stream


def _buffers(
    device: CudaDevice, layout: SlotLayout, spec: TensorSpec, made: Made
) -> tuple[PinnedBuffer, np.ndarray, DeviceBuffer]:
    """Allocate one tensor on both sides, and view the host's side as it is."""
    num_bytes = layout.max_batch * _item_bytes(spec)
    pinned = _kept(device.pinned_buffer(num_bytes), made)
    memory = _kept(device.device_buffer(num_bytes), made)
    shape = (layout.max_batch, *(size or 1 for size in spec.shape[1:]))
    return pinned, pinned.array.view(spec.dtype).reshape(shape), memory


def _item_bytes(spec: TensorSpec) -> int:
    return prod(size or 1 for size in spec.shape[1:]) * spec.dtype.itemsize


def _kept(item: _T, made: Made) -> _T:
    """Remember what must be freed."""
    made.append(item)
    return item


def _each(calls: Iterable[Callable[[], None]]) -> list[Exception]:
    """Call all of them; get the errors of those that failed."""
    errors = []
    for call in calls:
        try:
            call()
        except Exception as error:  # the others must be called too
            errors.append(error)
    return errors
