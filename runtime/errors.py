"""Errors that a user can fix, one type for each kind of fix."""

from __future__ import annotations


class EsnetError(Exception):
    """Base class of all errors of this distribution that a user can fix.

    Attributes:
        hint: What to do; ``None`` if the message says it.
        exit_code: Exit code of a command: 1 a check failed, 2 bad input, 3 missing library or GPU.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(EsnetError, ValueError):
    """An argument, a frame or a source is invalid: fix the call."""


class ModelFileError(EsnetError, ValueError):
    """The file is missing, damaged, or not an artefact of this toolkit: fix the file."""


class BackendUnavailable(EsnetError, ImportError):
    """The library that runs the model is missing or does not work here: install it."""

    exit_code = 3


class BackendBusy(EsnetError, TimeoutError):
    """Every slot of the backend stayed in use: collect a batch first, or wait longer."""


class CudaError(EsnetError, RuntimeError):
    """A CUDA call failed; the message holds the library's own text."""


class EngineMismatch(EsnetError, RuntimeError):
    """The engine is for another TensorRT or GPU, or its files do not belong together: rebuild it."""


class SourceLost(EsnetError, ConnectionError):
    """A camera or network stream stayed away for too long: check it and the network."""

    exit_code = 1
