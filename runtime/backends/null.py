"""A backend that computes nothing, to test the pipeline and to measure its overhead on any machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.backends.base import Backend


class NullBackend(Backend):
    """Returns zeros of the right shape and dtype."""

    name = "null"
    device = "none"

    def _open(self, path: Path, precision: str | None, threads: int | None) -> None:
        self.precision = self.card.precision
        self._require_precision(precision, (self.precision,), on=self.device)

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(
            np.zeros((batch.shape[0], *spec.shape[1:]), spec.dtype) for spec in self.outputs
        )

    def _release(self) -> None:
        """Do nothing: there is nothing to free."""
