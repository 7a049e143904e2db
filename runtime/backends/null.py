"""A backend that computes nothing, to test the pipeline and to measure its overhead on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import Backend
from runtime.slots import HostSlotQueue, SlotQueue


class NullBackend(Backend):
    """Returns zeros of the right shape and dtype."""

    name = "null"
    device = "none"
    num_slots = 3

    def _open(self, path: Path, precision: str | None, threads: int | None) -> None:
        self.precision = self.card.precision
        self._require_precision(precision, (self.precision,), on=self.device)

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._zeros(len(batch))

    def _zeros(self, num_frames: int) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros((num_frames, *spec.item_shape), spec.dtype) for spec in self.outputs)

    def _new_queue(self) -> SlotQueue:
        return _NullQueue(self)

    def _release(self) -> None:
        """Do nothing: there is nothing to free."""


class _NullQueue(HostSlotQueue):
    def __init__(self, backend: NullBackend) -> None:
        super().__init__(
            backend.input, num_slots=backend.num_slots, max_batch=backend.card.batch.max
        )
        self._backend = backend

    def _start(self, slot: Any, num_frames: int) -> None:
        """Do nothing: the batch is done at once."""

    def _finish(self, slot: Any, num_frames: int) -> tuple[np.ndarray, ...]:
        return self._backend._zeros(num_frames)
