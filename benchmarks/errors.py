"""Errors of ``benchmarks`` that a user can fix."""

from __future__ import annotations

from runtime.errors import EsnetError


class BenchmarkError(EsnetError):
    """The measurement cannot run with these arguments."""


class TargetMissed(BenchmarkError):
    """A model is slower than the target of ``--assert``, or slower than in the earlier report."""

    exit_code = 1
