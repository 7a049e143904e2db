"""Batches in flight: slots that any thread fills, submits and collects."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from runtime.artefact.tensors import TensorSpec
from runtime.errors import BackendBusy, InvalidInput


class InputSlot:
    """Input memory of one batch, to write frames into.

    It belongs to the caller from ``acquire`` until ``submit`` or ``release``.
    """

    def __init__(self, array: np.ndarray, give_back: Callable[[InputSlot], None]) -> None:
        self.array = array
        """The memory, (most frames, ...); page-locked on a GPU."""
        self.num_frames = len(array)
        """Frames that ``submit`` takes; ``acquire`` sets it to all."""
        self._give_back = give_back

    def release(self) -> None:
        """Give the slot back without submitting it."""
        self._give_back(self)


class Ticket:
    """A batch in flight; ``collect`` takes it once."""

    def __init__(self, slot: Any, num_frames: int) -> None:
        self._slot, self._is_claimed = slot, False
        self.num_frames = num_frames
        """Frames of the batch."""


class SlotQueue(ABC):
    """Slots that are acquired, submitted and collected from any thread.

    Subclasses implement ``_start``, ``_finish`` and ``_free``. No lock is held while a thread waits for a
    batch, so others may submit and collect meanwhile.
    """

    def __init__(self, spec: TensorSpec) -> None:
        """Make a queue without slots; the subclass adds them with ``_add``."""
        self._spec = spec
        self._slots: list[Any] = []
        self._idle: deque[Any] = deque()
        self._acquired: set[Any] = set()
        self._in_flight: dict[Ticket, None] = {}  # in the order of submission
        self._changed = threading.Condition()
        self._starting = threading.Lock()
        self._failure: str | None = None

    @property
    def num_slots(self) -> int:
        """Batches that can be in flight at once."""
        return len(self._slots)

    def acquire(self, timeout: float | None = None) -> Any:
        """Wait for a slot.

        Args:
            timeout: Seconds to wait at most; ``None`` waits until another batch is collected.

        Returns:
            An ``InputSlot``, the caller's until it is submitted or released.

        Raises:
            BackendBusy: No slot was free in time.
            InvalidInput: The queue is closed, or failed earlier.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._failure, timeout)
            self._require_usable()
            if not self._idle:
                raise BackendBusy(
                    f"all {self.num_slots} slots are in use after {timeout:g} s",
                    hint="collect() a batch first",
                )
            slot = self._idle.popleft()
            slot.num_frames = len(slot.array)
            self._acquired.add(slot)
            return slot

    def submit(
        self,
        batch: np.ndarray | InputSlot,
        *,
        num_frames: int | None = None,
        timeout: float | None = None,
    ) -> Ticket:
        """Start a batch and return at once, or as soon as a slot is free.

        Args:
            batch: At most ``max_batch`` frames, which are copied and stay the caller's; or an acquired slot,
                which belongs to the queue from now on.
            num_frames: Frames in the slot; ``None`` takes ``slot.num_frames``.
            timeout: As for ``acquire``, for an array.

        Raises:
            BackendBusy: No slot was free in time.
            InvalidInput: The batch does not fit, or the slot was not acquired.
        """
        return self._launch(*self._filled(batch, num_frames, timeout), is_claimed=False)

    def collect(self, ticket: Ticket | None = None) -> tuple[np.ndarray, ...]:
        """Wait for a batch; its slot is free afterwards.

        After Ctrl-C the batch is still in flight and can be collected again.

        Args:
            ticket: Ticket of ``submit``; ``None`` takes the batch that was submitted first.

        Returns:
            One fresh array per output, (frames, ...), the caller's.

        Raises:
            InvalidInput: No batch, or none with this ticket, is in flight.
            EsnetError: The batch failed; its slot is free again.
        """
        with self._changed:
            ticket = self._claim(ticket)
        try:
            outputs: tuple[np.ndarray, ...] = self._finish(ticket._slot, ticket.num_frames)
        except Exception:
            self._retire(ticket)
            raise
        except BaseException:
            with self._changed:
                ticket._is_claimed = False
                self._changed.notify_all()
            raise
        self._retire(ticket)
        return outputs

    def run(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Submit a batch and wait for it; ``collect()`` of other threads cannot take its result."""
        ticket = self._launch(*self._filled(batch, None, None), is_claimed=True)
        try:
            outputs: tuple[np.ndarray, ...] = self._finish(ticket._slot, ticket.num_frames)
        except BaseException as error:
            if not isinstance(
                error, Exception
            ):  # Ctrl-C: the slot is free when the batch has ended
                with suppress(Exception):
                    self._finish(ticket._slot, ticket.num_frames)
            raise
        finally:
            self._retire(ticket)
        return outputs

    def close(self) -> None:
        """Wait for the batches in flight, drop their results and free the slots; a second call does nothing.

        Threads that wait in ``acquire`` get an error; those in ``collect`` get their batch.
        """
        with self._starting, self._changed:
            self._failure = "it is closed"
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(t._is_claimed for t in self._in_flight))
            for ticket in self._in_flight:
                with suppress(Exception):
                    self._finish(ticket._slot, ticket.num_frames)
            for slots in (self._slots, self._idle, self._acquired, self._in_flight):
                slots.clear()
            self._free()

    @abstractmethod
    def _start(self, slot: Any, num_frames: int) -> None:
        """Start the batch in a slot; one call at a time."""

    @abstractmethod
    def _finish(self, slot: Any, num_frames: int) -> tuple[np.ndarray, ...]:
        """Wait for a started batch and return copies of its outputs; calls may overlap."""

    @abstractmethod
    def _free(self) -> None:
        """Free what the slots own; none is in flight."""

    def _add(self, slot: InputSlot) -> None:
        self._slots.append(slot)
        self._idle.append(slot)

    def _break(self, reason: str) -> None:
        """Refuse all further batches."""
        with self._changed:
            self._failure = self._failure or reason
            self._changed.notify_all()

    def _give_back(self, slot: InputSlot) -> None:
        with self._changed:
            if slot in self._acquired:
                self._acquired.remove(slot)
                self._idle.append(slot)
                self._changed.notify_all()

    def _filled(
        self, batch: np.ndarray | InputSlot, num_frames: int | None, timeout: float | None
    ) -> tuple[Any, int]:
        """Get the slot that holds a batch, and the number of its frames."""
        if isinstance(batch, InputSlot):
            if batch not in self._acquired:
                raise InvalidInput(
                    "this slot is not the caller's: it was submitted or released, or is of another backend",
                    hint="acquire() gives a slot for one submit()",
                )
            slot, count = batch, batch.num_frames if num_frames is None else num_frames
            self._check_count(count, len(slot.array))
            return slot, count
        self._spec.check(batch)
        slot = self.acquire(timeout)
        try:
            self._check_count(len(batch), len(slot.array))
            np.copyto(slot.array[: len(batch)], batch)
        except BaseException:
            slot.release()
            raise
        return slot, len(batch)

    def _check_count(self, count: int, most: int) -> None:
        if not 1 <= count <= most:
            hint = f"build the engine with --batch 1:{most}:{count}" if count > most else None
            raise InvalidInput(f"batch of {count} frames, a slot holds 1 to {most}", hint=hint)

    def _launch(self, slot: Any, num_frames: int, *, is_claimed: bool) -> Ticket:
        """Start a batch; tickets are in the order of the starts."""
        ticket = Ticket(slot, num_frames)
        ticket._is_claimed = is_claimed
        with self._starting:
            try:
                with self._changed:
                    self._require_usable()
                self._start(slot, num_frames)
            except BaseException as error:
                if not isinstance(error, Exception):
                    self._break("the start of a batch was interrupted")
                self._give_back(slot)
                raise
            with self._changed:
                self._acquired.discard(slot)
                self._in_flight[ticket] = None
        return ticket

    def _claim(self, ticket: Ticket | None) -> Ticket:
        """Reserve a batch for the calling thread, so that no other one collects it."""
        self._require_usable()
        for candidate in self._in_flight:
            if not candidate._is_claimed and ticket in (None, candidate):
                candidate._is_claimed = True
                return candidate
        which = "no batch" if ticket is None else "no batch with this ticket"
        raise InvalidInput(
            f"{which} is in flight", hint="each ticket of submit() is collected once"
        )

    def _retire(self, ticket: Ticket) -> None:
        with self._changed:
            del self._in_flight[ticket]
            self._idle.append(ticket._slot)
            self._changed.notify_all()

    def _require_usable(self) -> None:
        if self._failure is not None:
            raise InvalidInput(
                f"the artefact cannot be used: {self._failure}", hint="open the artefact again"
            )


class HostSlotQueue(SlotQueue):
    """Slots in ordinary host memory."""

    def __init__(self, spec: TensorSpec, *, num_slots: int, max_batch: int) -> None:
        """Make ``num_slots`` slots for up to ``max_batch`` frames of ``spec``."""
        super().__init__(spec)
        for _ in range(num_slots):
            array = np.empty((max_batch, *spec.item_shape), spec.dtype)
            self._add(InputSlot(array, self._give_back))

    def _free(self) -> None:
        """Do nothing: numpy frees its memory."""
