"""What can go wrong in ``esnet`` that its user can put right."""

from __future__ import annotations


class EsnetError(Exception):
    """Base of this package's errors: one line that says what was wrong, and a hint that says what to do.

    Attributes:
        hint: The next step, or ``None`` when the message already says it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(EsnetError, ValueError):
    """The file is not a checkpoint that this network can load."""


class LabelSetError(EsnetError, ValueError):
    """The label set is unknown, or does not fit the checkpoint."""


class DatasetError(EsnetError, ValueError):
    """The dataset is not where it should be, is incomplete, or holds labels outside its set."""


class TrainingError(EsnetError, ValueError):
    """The run cannot be started or resumed as asked."""
