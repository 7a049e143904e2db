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


class BuildError(ExportError, RuntimeError):
    """TensorRT refused the graph or the request, or the machine lacks what it takes."""


class PrecisionError(ExportError, RuntimeError):
    """What was built does not compute in what was asked for; nothing was written."""

    exit_code = 1


class CalibrationError(ExportError, ValueError):
    """The calibration frames or the range table do not serve this network."""
