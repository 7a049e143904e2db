"""What the GPU backends have in common: a slot ring, and what must be freed around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.backends.base import CardBackend, release_all
from runtime.card import ModelCard
from runtime.cuda.ring import SlotRing

NUM_SLOTS = 3
"""Batches in flight: one copied in, one computed, one copied out."""


class RingedBackend(CardBackend):
    """A backend whose batches overlap through ``submit`` and ``collect``.

    ``infer`` returns fresh arrays. ``collect`` returns views of page-locked memory, valid until their slot is
    submitted again (see ``SlotRing``). It may be used from any thread; calls from several threads take turns.
    Subclasses make ``ring``, and add to ``_closers`` what they open, in order.
    """

    ring: SlotRing
    """The slots."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self._closers: list[Callable[[], None]] = []

    def submit(self, batch: np.ndarray | None = None, *, num_frames: int | None = None) -> int:
        """Start a batch and return at once; see ``SlotRing.submit``."""
        return self.ring.submit(batch, num_frames=num_frames)

    def collect(self, ticket: int | None = None) -> tuple[np.ndarray, ...]:
        """Wait for a batch, the oldest by default; see ``SlotRing.collect``."""
        return self.ring.collect(ticket)

    def _run(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        views = self.ring.collect(self.ring.submit(batch))
        return tuple(view.copy() for view in views)

    def _release(self) -> None:
        release_all(self._closers)
