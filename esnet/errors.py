"""Errors of ``esnet`` that a user can fix."""

from __future__ import annotations

from runtime.errors import EsnetError


class CheckpointError(EsnetError, ValueError):
    """The file is not a checkpoint that ESNet can load."""


class LabelSetError(EsnetError, ValueError):
    """The label set is unknown, or its size differs from the checkpoint's number of classes."""


class DatasetError(EsnetError, ValueError):
    """The dataset is missing, incomplete, or has labels outside its label set."""


class TrainingError(EsnetError, ValueError):
    """The training run cannot be started or resumed with these settings."""
