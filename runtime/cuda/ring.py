"""A ring of slots (pinned memory, device memory and events), so that neighbouring batches overlap.

Three streams carry the copies in, the engine, and the copies out. Events order these steps for each slot.
While one slot computes, the next is copied in and the previous one is copied out. No batch allocates memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np

from runtime.artefact.tensors import TensorSpec
from runtime.cuda.device import CudaDevice, Graph, Stream
from runtime.cuda.resources import DeviceMemory, PinnedMemory, Resource
from runtime.errors import CudaError, InvalidInput
from runtime.slots import InputSlot, SlotQueue


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


class Slot(InputSlot):
    """Memory and events of one batch."""

    def __init__(
        self,
        device: CudaDevice,
        layout: SlotLayout,
        index: int,
        owner: ExitStack,
        give_back: Callable[[InputSlot], None],
        *,
        timing: bool,
    ) -> None:
        def allocate(spec: TensorSpec) -> tuple[PinnedMemory, np.ndarray, DeviceMemory]:
            num_bytes = layout.max_batch * spec.item_bytes
            pinned = _freed_by(owner, device.pinned_buffer(num_bytes))
            memory = _freed_by(owner, device.device_buffer(num_bytes))
            shape = (layout.max_batch, *spec.item_shape)
            return pinned, pinned.array.view(spec.dtype).reshape(shape), memory

        self.index = index
        """Position in the ring."""
        self.pinned_input, array, self.input_buffer = allocate(layout.input)
        super().__init__(array, give_back)
        outputs = [allocate(spec) for spec in layout.outputs]
        self.pinned_outputs = tuple(pinned for pinned, _, _ in outputs)
        self.outputs = tuple(view for _, view, _ in outputs)
        """Views of pinned memory, (max_batch, ...) for each output."""
        self.output_buffers = tuple(memory for _, _, memory in outputs)
        """Device memory of each output."""
        self.started, self.copied_in, self.computed = (
            _freed_by(owner, device.new_event(timing=timing)) for _ in range(3)
        )
        # The host waits for this one, without using a core.
        self.copied_out = _freed_by(owner, device.new_event(timing=timing, blocking=True))
        self.engine_graphs: dict[int, Graph] = {}
        self.whole_graphs: dict[int, Graph] = {}


Enqueue = Callable[[Slot, int, Stream], None]
"""Enqueues the engine's work for (slot, number of frames) on the compute stream."""


class SlotRing(SlotQueue, AbstractContextManager["SlotRing"]):
    """Slots on a GPU; see ``SlotQueue`` for ``acquire``, ``submit`` and ``collect``."""

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
            use_graphs: True to replay each batch size as a CUDA graph from the second run of a slot on; the
                copies belong to the graph if no other batch is in flight.
            compute_stream: Stream of the engine, which the ring does not free; ``None`` creates one.
            timing: True to measure ``stage_times_ms``.

        Raises:
            InvalidInput: Fewer than one slot.
            CudaError: Out of memory; nothing stays allocated.
        """
        if num_slots < 1:
            raise InvalidInput(f"a ring needs at least 1 slot, got {num_slots}")
        super().__init__(layout.input)
        self.layout = layout
        self.notes: list[str] = []
        """Messages for the user: batch sizes that run without a CUDA graph, and why."""
        self._device, self._enqueue = device, enqueue
        self._use_graphs, self._timing = use_graphs, timing
        self._sizes_without_graph: set[int] = set()
        self._resources = ExitStack()
        self._streams: list[Stream] = []
        self._stage_times_ms: tuple[float, float, float] | None = None
        try:
            with device.current():
                self._in, self._out = self._new_stream(), self._new_stream()
                self._compute = compute_stream or self._new_stream()
                if compute_stream:
                    self._streams.append(compute_stream)
                for index in range(num_slots):
                    self._add(
                        Slot(device, layout, index, self._resources, self._give_back, timing=timing)
                    )
            device.before_close(self.close)
        except BaseException:
            self.close()
            raise

    def stage_times_ms(self) -> tuple[float, float, float]:
        """Get device times in ms of copy in, compute and copy out of the batch that was collected last.

        Raises:
            InvalidInput: The ring was made without ``timing``, or nothing was collected.
        """
        if self._stage_times_ms is None:
            raise InvalidInput("stage times need SlotRing(timing=True) and a collected batch")
        return self._stage_times_ms

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, slot: Slot, num_frames: int) -> None:
        try:
            with self._device.current():
                self._enqueue_batch(slot, num_frames)
        except BaseException as error:  # the batch may be enqueued in part
            self._break(str(error))
            raise

    def _finish(self, slot: Slot, num_frames: int) -> tuple[np.ndarray, ...]:
        try:
            with self._device.current():
                slot.copied_out.synchronize()
                if self._timing:
                    events = (slot.started, slot.copied_in, slot.computed, slot.copied_out)
                    first, second, third = (end.ms_since(start) for start, end in pairwise(events))
                    self._stage_times_ms = first, second, third
        except CudaError as error:
            self._break(str(error))
            raise
        return tuple(array[:num_frames].copy() for array in slot.outputs)

    def _free(self) -> None:
        """Synchronize the streams and free everything in reverse order, also after an error."""
        streams, self._streams = self._streams, []
        if streams and self._device.is_open:
            with self._device.current():
                for stream in streams:  # registered last, so they run before anything is freed
                    self._resources.callback(stream.synchronize)
                self._resources.close()

    def _enqueue_batch(self, slot: Slot, count: int) -> None:
        """Enqueue copy in, engine and copy out. The slot's last batch was collected: its memory is free."""
        is_alone = not self._in_flight
        if is_alone and count in slot.whole_graphs:  # one launch is least work for the host
            slot.whole_graphs[count].launch(self._compute)
            slot.copied_out.record(self._compute)
            return
        if self._timing:
            slot.started.record(self._in)
        self._copy_in(slot, count, self._in)
        slot.copied_in.record(self._in)
        self._compute.wait(slot.copied_in)
        self._run(slot, count)
        slot.computed.record(self._compute)
        self._out.wait(slot.computed)
        self._copy_out(slot, count, self._out)
        slot.copied_out.record(self._out)

    def _copy_in(self, slot: Slot, count: int, stream: Stream) -> None:
        num_bytes = count * self.layout.input.item_bytes
        self._device.copy_to_device(slot.input_buffer, slot.pinned_input, num_bytes, stream)

    def _copy_out(self, slot: Slot, count: int, stream: Stream) -> None:
        buffers = zip(self.layout.outputs, slot.pinned_outputs, slot.output_buffers, strict=True)
        for spec, pinned, memory in buffers:
            self._device.copy_to_host(pinned, memory, count * spec.item_bytes, stream)

    def _run(self, slot: Slot, count: int) -> None:
        """Run the engine: directly the first time, which is the warm-up of the capture, then replayed."""
        if count in slot.engine_graphs:
            slot.engine_graphs[count].launch(self._compute)
            return
        self._enqueue(slot, count, self._compute)
        if self._use_graphs and count not in self._sizes_without_graph:
            self._compute.synchronize()  # libraries allocate and compile in their first run of a shape
            self._capture(slot, count)

    def _capture(self, slot: Slot, count: int) -> None:
        """Capture the engine, and the engine with its copies for a batch that is alone.

        Graphs on one stream run one after the other, so with the copies in them, neighbouring batches would
        not overlap. Both are captured now, because ONNX Runtime plans again after a run of another size, and
        must not do so in a capture.
        """
        engine = partial(self._enqueue, slot, count, self._compute)

        def whole() -> None:
            self._copy_in(slot, count, self._compute)
            engine()
            self._copy_out(slot, count, self._compute)

        try:
            slot.engine_graphs[count] = self._captured(engine)
            if not self._timing:
                slot.whole_graphs[count] = self._captured(whole)
        except CudaError as error:
            slot.engine_graphs.pop(count, None)
            self._sizes_without_graph.add(count)
            self.notes.append(f"batches of {count} run without a CUDA graph: {error}")
            with suppress(CudaError):
                engine()  # ONNX Runtime reports the failure once more, in its next run

    def _captured(self, work: Callable[[], None]) -> Graph:
        return _freed_by(self._resources, self._device.capture(self._compute, work))

    def _new_stream(self) -> Stream:
        stream = _freed_by(self._resources, self._device.new_stream())
        self._streams.append(stream)
        return stream


def _freed_by(owner: ExitStack, item: _Resource) -> _Resource:
    """Free ``item`` when ``owner`` closes, while the context is current."""
    owner.callback(item.release)
    return item
