"""What can go wrong in ``benchmarks`` that its user can put right."""

from __future__ import annotations


class BenchmarkError(Exception):
    """Base of this package's errors.

    Attributes:
        hint: The next step, or ``None`` when the message already says it.
        exit_code: What the command line ends with.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class TargetMissed(BenchmarkError):
    """A model is slower than the target that was asserted."""

    exit_code = 1
