"""Errors of ``export`` that a user can fix."""

from __future__ import annotations

from runtime.errors import EsnetError


class ExportError(EsnetError):
    """The export cannot be done as requested; base class of this package's errors."""


class GraphError(ExportError, ValueError):
    """A transform cannot rewrite the graph."""


class ParityError(ExportError, ValueError):
    """The artefact does not compute what the checkpoint computes."""

    exit_code = 1


class BuildError(ExportError, RuntimeError):
    """TensorRT rejects the graph or the request, or the machine cannot build the engine."""


class PrecisionError(ExportError, RuntimeError):
    """The engine does not compute in the requested precision; nothing was written."""

    exit_code = 1


class CalibrationError(ExportError, ValueError):
    """The calibration frames or the range table do not fit the network."""
