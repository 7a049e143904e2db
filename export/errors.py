"""What can go wrong in ``export`` that its user can put right."""

from __future__ import annotations


class ExportError(Exception):
    """Base of this package's errors.

    Attributes:
        hint: The next step, or ``None`` when the message already says it.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class GraphError(ExportError, ValueError):
    """The graph is not one that this transform can rewrite."""


class ParityError(ExportError, ValueError):
    """The artefact does not compute what the checkpoint computes."""

    exit_code = 1
