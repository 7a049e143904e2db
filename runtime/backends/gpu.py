"""Base class of the GPU backends: owns the slot ring and frees it."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from runtime.artefact.card import ModelCard
from runtime.backends.base import Backend
from runtime.cuda.ring import SlotRing

NUM_SLOTS = 3
"""Batches in flight: one copied in, one computed, one copied out."""


class GpuBackend(Backend):
    """A backend whose batches overlap through ``submit`` and ``collect``.

    ``infer`` returns fresh arrays; ``collect`` returns views of pinned memory, valid until their slot is
    submitted again (see ``SlotRing``). It may be used from any thread; calls from several threads take turns.
    Subclasses set ``ring`` and register in ``_resources`` what they open.
    """

    ring: SlotRing
    """The slots."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self._resources = ExitStack()

    def submit(self, batch: np.ndarray | None = None, *, num_frames: int | None = None) -> int:
        """Start a batch and return its ticket at once; see ``SlotRing.submit``."""
        return self.ring.submit(batch, num_frames=num_frames)

    def collect(self, ticket: int | None = None) -> tuple[np.ndarray, ...]:
        """Wait for a batch, the oldest by default; see ``SlotRing.collect``."""
        return self.ring.collect(ticket)

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        views = self.ring.collect(self.ring.submit(batch))
        return tuple(view.copy() for view in views)

    def _release(self) -> None:
        self._resources.close()
