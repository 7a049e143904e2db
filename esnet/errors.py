"""Errors of ``esnet`` that a user can fix."""

from __future__ import annotations

from runtime.errors import EsnetError


class CheckpointError(EsnetError, ValueError):
    """The file is not a checkpoint that this network can load."""


class LabelSetError(EsnetError, ValueError):
    """The label set is unknown, or does not fit the checkpoint."""


class DatasetError(EsnetError, ValueError):
    """The dataset is missing, incomplete, or holds labels outside its set."""


class TrainingError(EsnetError, ValueError):
    """The run cannot be started or resumed as asked."""
