"""Errors of ``export`` that a user can fix, and the check of an output path."""

from __future__ import annotations

from pathlib import Path

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


def require_output(path: Path, source: Path) -> None:
    """Refuse an unusable output path before any work is done.

    Args:
        path: File to write.
        source: Input file, which must not be overwritten.

    Raises:
        ExportError: The folder does not exist, or ``path`` is a folder, a device or ``source``.
    """
    if not path.parent.is_dir():
        raise ExportError(
            f"there is no folder {path.parent} to write to",
            hint="create it, or choose another file",
        )
    problems = {
        "is a folder": path.is_dir(),
        "is not a regular file": path.exists() and not path.is_file(),
        "is the input file itself": path.exists() and path.samefile(source),
    }
    if problem := next((text for text, is_true in problems.items() if is_true), None):
        raise ExportError(f"output {path} {problem}", hint="choose another file")
