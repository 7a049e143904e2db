"""Errors of ``benchmarks`` that a user can fix."""

from __future__ import annotations

from runtime.errors import EsnetError


class BenchmarkError(EsnetError):
    """The measurement cannot be done as asked."""


class TargetMissed(BenchmarkError):
    """A model is slower than the target of ``--assert``, or than an earlier report allows."""

    exit_code = 1
