"""Base class of the GPU backends: opens the GPU, owns the slot ring and frees both."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from runtime.artefact.card import ModelCard
from runtime.backends.base import Backend
from runtime.cuda.device import CudaDevice, Stream, open_device
from runtime.cuda.ring import Slot, SlotLayout, SlotRing
from runtime.slots import SlotQueue


class GpuBackend(Backend):
    """A backend whose slots are page-locked memory, device memory and events; see ``SlotRing``.

    Subclasses implement ``_check``, ``_load`` and ``_enqueue``.
    """

    ring: SlotRing
    """The slots."""
    prefers_batches = True
    _use_graphs = True

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        *,
        precision: str | None = None,
        threads: int | None = None,
        num_slots: int = 3,
        device: CudaDevice | int = 0,
        timing: bool = False,
    ) -> None:
        """Open an artefact as ``Backend`` does; only its own precision is possible.

        Args:
            path: The artefact.
            card: Its card.
            precision: As for ``Backend``.
            threads: Ignored.
            num_slots: Batches in flight; 3 are one copied in, one computed and one copied out.
            device: CUDA's number of the GPU, or an open one, which the backend owns and closes.
            timing: True to measure the ring's stages; see ``SlotRing.stage_times_ms``.

        Raises:
            CudaError: Out of memory, or the GPU failed.
            InvalidInput: CUDA lists no such GPU.
        """
        self.precision = card.precision
        self._resources = ExitStack()
        """Callbacks that free what the backend opened."""
        self._notes: list[str] = []
        self._device, self.num_slots, self._timing = device, num_slots, timing
        super().__init__(path, card, precision=precision, threads=threads)

    def _open(self, path: Path, precision: str | None, threads: int | None) -> None:
        self._check(path, precision)
        layout = SlotLayout(input=self.input, outputs=self.outputs, max_batch=self.card.batch.max)
        try:
            given = self._device
            self._cuda = open_device(index=given) if isinstance(given, int) else given
            self._resources.callback(self._cuda.close)
            self.device = f"{self._cuda.name}, cuda:{self._cuda.index} ({self._cuda.library})"
            with self._cuda.current():
                self._stream = self._cuda.new_stream()
                self._resources.callback(self._stream.free)
                self._load(path)
                self.ring = SlotRing(
                    self._cuda,
                    layout,
                    self._enqueue,
                    num_slots=self.num_slots,
                    use_graphs=self._use_graphs,
                    compute_stream=self._stream,
                    timing=self._timing,
                )
            self._resources.callback(self.ring.close)
        except BaseException:
            self._release()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """Why some batches run without a CUDA graph, or an engine may be slow."""
        return (*self._notes, *self.ring.notes)

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.ring.run(batch)

    def _new_queue(self) -> SlotQueue:
        return self.ring

    def _release(self) -> None:
        self._resources.close()

    @abstractmethod
    def _check(self, path: Path, precision: str | None) -> None:
        """Check precision, library and artefact, before a GPU is opened."""

    @abstractmethod
    def _load(self, path: Path) -> None:
        """Load the artefact on the GPU; its context is current. Register in ``_resources`` what to free.

        The engine runs on ``_stream``.
        """

    @abstractmethod
    def _enqueue(self, slot: Slot, num_frames: int, stream: Stream) -> None:
        """Enqueue the engine's work on ``stream``."""
