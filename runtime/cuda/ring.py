"""A ring of slots (pinned memory, device memory and events), so that neighbouring batches overlap.

Three streams carry the copies in, the engine, and the copies out. Events order these steps for each slot.
While one slot computes, the next is copied in and the previous one is copied out. No batch allocates memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import TypeVar

import numpy as np

from runtime.backends.base import TensorSpec
from runtime.cuda.device import CudaDevice, Graph, Stream
from runtime.cuda.resources import DeviceMemory, PinnedMemory, Resource
from runtime.errors import CudaError, InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLayout:
    """Tensors of a slot; the first axis of every shape is the batch."""

    input: TensorSpec
    """The engine's input."""
    outputs: tuple[TensorSpec, ...]
    """The engine's outputs."""
    max_batch: int
    """Frames that fit into a slot."""


_Resource = TypeVar("_Resource", bound=Resource)


class Slot:
    """Memory and events of one batch."""

    def __init__(
        self, device: CudaDevice, layout: SlotLayout, index: int, owner: ExitStack, *, timing: bool
    ) -> None:
        def allocate(spec: TensorSpec) -> tuple[PinnedMemory, np.ndarray, DeviceMemory]:
            num_bytes = layout.max_batch * _item_bytes(spec)
            pinned = _freed_by(owner, device.pinned_buffer(num_bytes))
            memory = _freed_by(owner, device.device_buffer(num_bytes))
            shape = (layout.max_batch, *(size or 1 for size in spec.shape[1:]))
            return pinned, pinned.array.view(spec.dtype).reshape(shape), memory

        self.index = index
        """Position in the ring."""
        self.pinned_input, self.input, self.input_buffer = allocate(layout.input)
        outputs = [allocate(spec) for spec in layout.outputs]
        self.pinned_outputs = tuple(pinned for pinned, _, _ in outputs)
        self.outputs = tuple(view for _, view, _ in outputs)
        """Views of pinned memory, (max_batch, ...) for each output."""
        self.output_buffers = tuple(memory for _, _, memory in outputs)
        """Device memory of each output."""
        self.started, self.copied_in, self.computed, self.copied_out = (
            _freed_by(owner, device.new_event(timing=timing)) for _ in range(4)
        )
        self.num_frames = 0
        self.ticket = -1
        self.graphs: dict[int, Graph] = {}


Enqueue = Callable[[Slot, int, Stream], None]
"""Enqueues the engine's work for (slot, number of frames) on the compute stream."""


class SlotRing(AbstractContextManager["SlotRing"]):
    """Slots that are submitted and collected in turn.

    May be used from any thread; calls take turns, but a batch may be submitted while another thread waits in
    ``collect``. The input of a slot must not be changed between ``submit``
    and ``collect``. ``collect`` returns views that are valid until their slot is submitted again: with n
    slots, until n - 1 further batches were submitted.
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
            layout: Tensors of a slot.
            enqueue: Enqueues the engine's work on a stream.
            num_slots: Batches in flight.
            use_graphs: True to replay each batch size as a CUDA graph from the second run of a slot on.
            compute_stream: Stream of the engine, which the ring does not free; ``None`` creates one.
            timing: True to measure ``stage_times_ms``.

        Raises:
            InvalidInput: Fewer than one slot.
            CudaError: Out of memory; nothing stays allocated.
        """
        if num_slots < 1:
            raise InvalidInput(f"a ring needs at least 1 slot, got {num_slots}")
        self.layout, self.num_slots = layout, num_slots
        self.notes: list[str] = []
        """Messages for the user: batch sizes that run without a CUDA graph, and why."""
        self._device, self._enqueue = device, enqueue
        self._use_graphs, self._timing = use_graphs, timing
        self._sizes_without_graph: set[int] = set()
        self._collecting = threading.RLock()  # taken before _lock; close waits for collect
        self._lock = threading.RLock()
        self._next_ticket = 0
        self._failure: str | None = None
        self._resources = ExitStack()
        self._streams: list[Stream] = []
        self._last: Slot | None = None
        try:
            with device.current():
                self._in, self._out = self._new_stream(), self._new_stream()
                self._compute = compute_stream or self._new_stream()
                if compute_stream:
                    self._streams.append(compute_stream)
                self._slots = [
                    Slot(device, layout, index, self._resources, timing=timing)
                    for index in range(num_slots)
                ]
            device.before_close(self.close)
        except BaseException:
            self.close()
            raise

    @property
    def free_slots(self) -> int:
        """Number of slots that can be submitted now."""
        return sum(slot.ticket < 0 for slot in self._slots)

    def next_input(self) -> np.ndarray:
        """Get the pinned input, (max_batch, ...), of the slot that ``submit`` takes next, to decode into.

        Raises:
            InvalidInput: Every slot is in flight.
        """
        with self._lock:
            return self._free_slot().input

    def submit(self, batch: np.ndarray | None = None, *, num_frames: int | None = None) -> int:
        """Start a batch and return at once.

        Args:
            batch: At most ``max_batch`` frames, with dtype and shape of the layout's input; it is copied.
                ``None`` if the frames are already in ``next_input()``.
            num_frames: Number of frames if ``batch`` is ``None``; default ``max_batch``.

        Returns:
            The ticket for ``collect``.

        Raises:
            InvalidInput: Every slot is in flight, or the batch does not fit.
            CudaError: A CUDA call failed; the ring can then only be closed.
        """
        with self._lock, self._device.current():
            slot = self._free_slot()
            count = self._fill(slot, batch, num_frames)
            try:
                self._start(slot, count)
            except BaseException as error:
                self._failure = str(error)
                raise
            slot.num_frames, slot.ticket = count, self._next_ticket
            self._next_ticket += 1
            return slot.ticket

    def collect(self, ticket: int | None = None) -> tuple[np.ndarray, ...]:
        """Wait for a batch and get its outputs.

        Args:
            ticket: Ticket of ``submit``; ``None`` takes the oldest batch.

        Returns:
            One view per output, (frames, ...), valid until its slot is submitted again; after ``close`` the
            views stay readable.

        Raises:
            InvalidInput: No batch, or none with this ticket, is in flight.
            CudaError: The GPU failed; the ring can then only be closed.
        """
        with self._collecting, self._device.current():
            with self._lock:
                slot = self._slot_in_flight(ticket)
            try:
                slot.copied_out.synchronize()  # without the lock: other threads submit meanwhile
            except CudaError as error:
                self._failure = str(error)
                raise
            with self._lock:
                views = tuple(array[: slot.num_frames] for array in slot.outputs)
                slot.ticket, self._last = -1, slot
                return views

    def stage_times_ms(self) -> tuple[float, float, float]:
        """Get device times in ms of copy in, compute and copy out of the batch that was collected last.

        Raises:
            InvalidInput: The ring was made without ``timing``, or nothing was collected.
        """
        if not self._timing or self._last is None:
            raise InvalidInput("stage times need SlotRing(timing=True) and a collected batch")
        slot = self._last
        with self._lock, self._device.current():
            events = (slot.started, slot.copied_in, slot.computed, slot.copied_out)
            first, second, third = (end.ms_since(start) for start, end in pairwise(events))
            return first, second, third

    def close(self) -> None:
        """Wait for the batches in flight and free everything; a second call does nothing.

        Everything is freed in reverse order, also after an error. Closing the device does the same.

        Raises:
            CudaError: A CUDA call failed.
        """
        with self._collecting, self._lock:
            streams, self._streams, self._slots, self._last = self._streams, [], [], None
            self._failure = "it is closed"
            if not streams or not self._device.is_open:
                return
            with self._device.current():
                for stream in streams:  # registered last, so they run before anything is freed
                    self._resources.callback(stream.synchronize)
                self._resources.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, slot: Slot, count: int) -> None:
        """Enqueue copy in, engine and copy out. The slot's last batch was collected: its memory is free."""
        device, layout = self._device, self.layout
        if self._timing:
            slot.started.record(self._in)
        num_bytes = count * _item_bytes(layout.input)
        device.copy_to_device(slot.input_buffer, slot.pinned_input, num_bytes, self._in)
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
        """Run the engine: directly the first time, which is the warm-up of the capture, then replayed."""
        if count in slot.graphs:
            slot.graphs[count].launch(self._compute)
            return
        self._enqueue(slot, count, self._compute)
        if self._use_graphs and count not in self._sizes_without_graph:
            self._compute.synchronize()  # libraries allocate and compile in their first run of a shape
            self._capture(slot, count)

    def _capture(self, slot: Slot, count: int) -> None:
        work = partial(self._enqueue, slot, count, self._compute)
        try:
            graph = self._device.capture(self._compute, work)
        except CudaError as error:
            self._sizes_without_graph.add(count)
            self.notes.append(f"batches of {count} run without a CUDA graph: {error}")
            with suppress(CudaError):
                work()  # ONNX Runtime reports the failure once more, in its next run
        else:
            slot.graphs[count] = _freed_by(self._resources, graph)

    def _fill(self, slot: Slot, batch: np.ndarray | None, num_frames: int | None) -> int:
        """Check a batch and copy it into the slot; return its number of frames."""
        most = self.layout.max_batch
        if batch is not None:
            self.layout.input.check(batch)
            num_frames = batch.shape[0]
        count = most if num_frames is None else num_frames
        if not 1 <= count <= most:
            hint = f"build the engine with --batch 1:{most}:{count}" if count > most else None
            raise InvalidInput(f"batch of {count} frames, a slot holds 1 to {most}", hint=hint)
        if batch is not None:
            np.copyto(slot.input[:count], batch)
        return count

    def _free_slot(self) -> Slot:
        self._require_usable()
        slot = self._slots[self._next_ticket % self.num_slots]
        if slot.ticket >= 0:
            raise InvalidInput(
                f"slot {slot.index} of {self.num_slots} is still in flight",
                hint="collect() the oldest batch first, or make the ring with more slots",
            )
        return slot

    def _slot_in_flight(self, ticket: int | None) -> Slot:
        self._require_usable()
        flying = [
            slot for slot in self._slots if slot.ticket >= 0 and ticket in (None, slot.ticket)
        ]
        if not flying:
            which = "" if ticket is None else f" with ticket {ticket}"
            raise InvalidInput(
                f"no batch{which} is in flight", hint="each ticket of submit() is collected once"
            )
        return min(flying, key=lambda slot: slot.ticket)

    def _require_usable(self) -> None:
        if self._failure is not None:
            raise InvalidInput(
                f"the ring cannot be used: {self._failure}", hint="open the artefact again"
            )

    def _new_stream(self) -> Stream:
        stream = _freed_by(self._resources, self._device.new_stream())
        self._streams.append(stream)
        return stream


def _freed_by(owner: ExitStack, item: _Resource) -> _Resource:
    """Free ``item`` when ``owner`` closes, while the context is current."""
    owner.callback(item.release)
    return item


def _item_bytes(spec: TensorSpec) -> int:
    return prod(size or 1 for size in spec.shape[1:]) * spec.dtype.itemsize
