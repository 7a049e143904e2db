"""Errors of ``export`` that a user can fix."""

from __future__ import annotations

from runtime.errors import EsnetError


class ExportError(EsnetError):
    """The export cannot be done as asked; base class of this package's errors."""


class GraphError(ExportError, ValueError):
    """This transform cannot rewrite the graph."""


class ParityError(ExportError, ValueError):
    """The artefact does not compute what the checkpoint computes."""

    exit_code = 1


class BuildError(ExportError, RuntimeError):
    """TensorRT refused the graph or the request, or the machine lacks what it takes."""


class PrecisionError(ExportError, RuntimeError):
    """The engine does not compute in the precision that was asked for; nothing was written."""

    exit_code = 1


class CalibrationError(ExportError, ValueError):
    """The calibration frames or the range table do not fit this network."""
