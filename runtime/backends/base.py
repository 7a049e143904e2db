"""Base class of all backends: one batch at a time, or several in flight, from any thread."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from runtime.artefact.card import ModelCard
from runtime.artefact.tensors import TensorSpec, shape_text, tensor_specs
from runtime.errors import InvalidInput, ModelFileError
from runtime.pipeline import Pipeline
from runtime.slots import InputSlot, SlotQueue, Ticket


class Backend(AbstractContextManager["Backend"]):
    """An open artefact: host arrays in, host arrays out.

    Use it with ``with``, from any thread. ``infer`` has the shortest latency; ``stream``, or ``submit`` and
    ``collect``, keep ``num_slots`` batches in flight for the highest throughput. Subclasses implement
    ``_open``, ``_infer``, ``_new_queue`` and ``_release``.

    Example:
        >>> with open_backend("model.onnx") as backend:
        ...     slot = backend.acquire()
        ...     slot.array[0] = frame
        ...     ticket = backend.submit(slot, num_frames=1)
        ...     (labels,) = backend.collect(ticket)
        >>> labels.shape
        (1, 64, 128)
    """

    name: str
    """Key of ``runtime.backend.BACKENDS``."""
    card: ModelCard
    """The artefact's card."""
    input: TensorSpec
    """Input of ``infer``."""
    outputs: tuple[TensorSpec, ...]
    """Outputs of ``infer``, in order."""
    precision: str
    """Precision that runs: ``fp32``, ``fp16``, ``bf16`` or ``int8``."""
    device: str
    """Device name, for reports."""
    num_slots: int
    """Batches that can be in flight at once."""
    prefers_batches = False
    """True if a batch of ``card.batch.opt`` gives more frames per second than as many batches of one."""

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        *,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open an artefact.

        Args:
            path: The artefact.
            card: Its card.
            precision: Precision to compute in; ``None`` takes the card's, or fp32 if the device lacks it.
            threads: CPU threads; ``None`` leaves the number to the library. GPU backends ignore it.

        Raises:
            InvalidInput: The backend cannot run this precision here.
            BackendUnavailable: A library, the driver or the GPU is missing.
            ModelFileError: The library cannot open the artefact.
        """
        self.card = card
        self.input, *outputs = tensor_specs(card)
        self.outputs = tuple(outputs)
        self._turn = threading.RLock()
        self._queue: SlotQueue | None = None
        self._is_open = False
        self._open(path, precision, threads)
        self._is_open = True

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about how the artefact runs; they may grow while batches run."""
        return ()

    def infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch and wait for it.

        Args:
            batch: Dtype and shape of ``input``; the first axis within the card's batch range. It stays the
                caller's, and must not be changed meanwhile.

        Returns:
            One fresh array per output, with the dtype and shape of ``outputs``; the caller's.

        Raises:
            InvalidInput: Wrong dtype, shape or batch size, or the backend is closed.
        """
        self._require_open()
        self.input.check(batch)
        self.check_batch_size(batch.shape[0])
        return self._infer(np.ascontiguousarray(batch))

    def acquire(self, timeout: float | None = None) -> InputSlot:
        """Wait for input memory to decode the next batch into.

        ``slot.array`` is (max batch, ...) of ``input``, page-locked on a GPU. It is the caller's until the
        slot is submitted or released.

        Args:
            timeout: Seconds to wait at most; ``None`` waits until another batch is collected.

        Raises:
            BackendBusy: All slots stayed in use.
            InvalidInput: The backend is closed.
        """
        slot: InputSlot = self._slots().acquire(timeout)
        return slot

    def submit(
        self,
        batch: np.ndarray | InputSlot,
        *,
        num_frames: int | None = None,
        timeout: float | None = None,
    ) -> Ticket:
        """Start a batch and return; while all slots are in use, wait for one.

        Args:
            batch: An array as for ``infer``, which is copied and stays the caller's; or an acquired slot,
                which is the backend's from now on.
            num_frames: Frames in the slot, within the card's batch range; ``None`` takes
                ``slot.num_frames``.
            timeout: As for ``acquire``, for an array.

        Raises:
            BackendBusy: All slots stayed in use.
            InvalidInput: As for ``infer``, or the slot is not the caller's.
        """
        queue = self._slots()
        if isinstance(batch, InputSlot):
            self.check_batch_size(batch.num_frames if num_frames is None else num_frames)
        else:
            self.input.check(batch)
            self.check_batch_size(batch.shape[0])
        return queue.submit(batch, num_frames=num_frames, timeout=timeout)

    def collect(self, ticket: Ticket | None = None) -> tuple[np.ndarray, ...]:
        """Wait for a submitted batch; each is collected once.

        After Ctrl-C the batch is still in flight and can be collected again.

        Args:
            ticket: Ticket of ``submit``; ``None`` takes the batch that was submitted first.

        Returns:
            As from ``infer``: fresh arrays, the caller's.

        Raises:
            InvalidInput: No batch, or none with this ticket, is in flight.
            EsnetError: The batch failed. A GPU that failed can only be closed; other backends go on.
        """
        return self._slots().collect(ticket)

    def stream(
        self, batches: Iterable[np.ndarray | InputSlot]
    ) -> Generator[tuple[np.ndarray, ...]]:
        """Run batches with ``num_slots`` in flight, and yield their outputs in order.

        A thread takes the batches. When the iteration ends, by its last batch, the first error, Ctrl-C or
        ``close()``, that thread has ended and all slots are free. An error of ``batches`` or of a batch is
        raised after the results of the batches before it.

        Args:
            batches: Arrays, or acquired slots with ``num_frames`` set, as for ``submit``.

        Yields:
            The outputs of each batch, as from ``infer``: fresh arrays, the caller's.
        """
        tickets: deque[Ticket] = deque()

        def submitted() -> Iterator[Ticket]:
            for batch in batches:
                tickets.append(self.submit(batch))
                yield tickets[-1]

        def drop_results() -> None:
            """Free the slots, for which the thread may wait."""
            while tickets:
                with suppress(Exception):
                    self.collect(tickets.popleft())

        pipeline = Pipeline(submitted(), queue_size=self.num_slots, while_stopping=drop_results)
        with closing(pipeline):
            for ticket in pipeline:
                outputs = self.collect(ticket)
                tickets.popleft()
                yield outputs

    def close(self) -> None:
        """Wait for the batches in flight, drop their results and free everything; may be called again."""
        with self._turn:
            if not self._is_open:
                return
            self._is_open = False
            try:
                if self._queue is not None:
                    self._queue.close()
            finally:
                self._release()

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _open(self, path: Path, precision: str | None, threads: int | None) -> None: ...
    @abstractmethod
    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run a C-contiguous batch; calls of several threads may overlap."""

    @abstractmethod
    def _new_queue(self) -> SlotQueue:
        """Make the slots of ``submit`` and ``stream``, on first use."""

    @abstractmethod
    def _release(self) -> None:
        """Free what ``_open`` made."""

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let one thread at a time use the library, and none after ``close``."""
        with self._turn:
            self._require_open()
            yield

    def _slots(self) -> SlotQueue:
        if self._queue is None:
            with self._in_turn():
                self._queue = self._queue or self._new_queue()
        self._require_open()
        return self._queue

    def _require_open(self) -> None:
        if not self._is_open:
            raise InvalidInput(f"the {self.name} backend is closed", hint="open the artefact again")

    def check_batch_size(self, size: int) -> None:
        """Check a number of frames.

        Raises:
            InvalidInput: It is outside the card's batch range; the hint says how to export the artefact.
        """
        low, _, high = self.card.batch
        if not low <= size <= high:
            allowed = str(low) if low == high else f"{low} to {high}"
            hint = f"export with --batch {min(low, size)}:{size}:{max(high, size)}"
            raise InvalidInput(
                f"batch of {size} frames, the artefact takes {allowed}",
                hint=hint if size > 0 else None,
            )

    def _require_precision(self, asked: str | None, offered: Sequence[str], *, on: str) -> None:
        """Refuse a requested precision that is not offered; ``on`` names the device in the message."""
        if asked is not None and asked not in offered:
            raise InvalidInput(
                f"{self.name} cannot run {asked} on {on}, it offers {', '.join(offered)}",
                hint=f"--precision {offered[0]}, or omit it to use the model's precision",
            )

    def _check_graph(self, path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
        """Check the shapes of a graph's inputs and outputs, by name, against the card."""
        for spec in (self.input, *self.outputs):
            if spec.name not in shapes or not spec.fits(shapes[spec.name]):
                found = ", ".join(f"{name} {shape_text(shape)}" for name, shape in shapes.items())
                raise ModelFileError(
                    f"{path} does not match its card: no {spec.name} {shape_text(spec.shape)} among {found}",
                    hint="the file was changed after its export: export it again",
                )
