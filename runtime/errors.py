"""What can go wrong in ``runtime`` that its user can put right, one type for each reaction."""

from __future__ import annotations


class RunError(Exception):
    """Base of this package's errors: one line that says what was wrong, and a hint that says what to do.

    Attributes:
        hint: The next step, or ``None`` when the message already says it.
        exit_code: What a command line ends with: 2 bad input, 3 missing environment.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(RunError, ValueError):
    """Fix the call: an argument, a frame or a source is not what it must be."""


class ModelFileError(RunError, ValueError):
    """Fix the file: it is missing, damaged, or not an artefact of this toolkit."""


class BackendUnavailable(RunError, ImportError):
    """Install something: the library that would run the model is not here, or cannot run it."""

    exit_code = 3


class CudaError(RunError, RuntimeError):
    """Free memory, or look at the driver: a CUDA call failed; the message has the library's own text."""


class EngineMismatch(RunError, RuntimeError):
    """Build the engine again: it is for another TensorRT or GPU, or its files do not belong together."""
