"""A backend that computes nothing, to test the pipeline and to measure its overhead on any machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.artefact.card import ModelCard
from runtime.backends.base import Backend, require_precision


class NullBackend(Backend):
    """Returns zeros of the right shape and dtype."""

    name = "null"
    device = "none"

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        *,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(card)
        require_precision(precision, (card.precision,), backend=self.name, device=self.device)
        self.precision = card.precision

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(
            np.zeros((batch.shape[0], *spec.shape[1:]), spec.dtype) for spec in self.outputs
        )

    def _release(self) -> None:
        """Do nothing: there is nothing to free."""
