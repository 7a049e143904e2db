"""Parity: how far the outputs of two graphs are apart, and how far they may be. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from esnet.data.scenes import street_scene
from export.errors import ExportError, ParityError
from runtime.backend import installed_backends
from runtime.errors import BackendUnavailable
from runtime.media.sources import open_source

_NUM_FRAMES = 3
# Largest allowed logit difference over the largest logit, and smallest allowed share of equal labels.
_LIMITS = {"fp32": (1e-3, 0.999), "fp16": (3e-2, 0.99)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """Difference between an artefact and its checkpoint."""

    max_abs_logit_diff: float
    """Largest absolute difference of a logit."""
    max_abs_logit: float
    """Largest absolute logit of the checkpoint, the scale of the difference."""
    equal_labels: float
    """Share of pixels with the same class, 0 to 1."""
    num_frames: int
    """Number of frames compared."""
    frames: str
    """Origin of the frames."""
    backend: str
    """Backend that ran the artefact."""
    equal_labels_bf16: float | None = None
    """``equal_labels`` in bf16 on OpenVINO, by which ``auto`` allows it; ``None`` if it does not run here."""

    def as_text(self) -> str:
        """Summarise the comparison in one line."""
        agreement = self.equal_labels_bf16
        bf16 = "" if agreement is None else f" ({100 * agreement:.4g} % in bf16)"
        return (
            f"max |logit difference| {self.max_abs_logit_diff:.2g} of {self.max_abs_logit:.3g}, "
            f"equal labels {100 * self.equal_labels:.6g} %{bf16}, {self.num_frames} {self.frames}, "
            f"on {self.backend}"
        )


def parity_frames(frames: Path | None, size_hw: tuple[int, int]) -> tuple[list[np.ndarray], str]:
    """Read the first frames of a source, or generate street scenes of ``size_hw``; with their origin.

    Raises:
        BackendUnavailable: No backend is installed that could run a graph on them.
        ExportError: No frame of the source can be read.
    """
    if not installed_backends():
        raise BackendUnavailable(
            "no installed backend can run the exported graph for the comparison",
            hint="pip install 'esnet-deploy[cpu]', or use --no-verify",
        )
    if frames is None:
        scenes = [street_scene(size_hw, seed=seed).image for seed in range(_NUM_FRAMES)]
        return scenes, "generated street scenes"
    source = open_source(frames)
    images = [frame.image for frame in islice(source, _NUM_FRAMES)]
    if not images:
        raise ExportError(f"no frame of {frames} could be read: {'; '.join(source.skipped[:3])}")
    return images, f"frames of {frames.name}"


def parity_problem(parity: Parity, precision: str) -> str | None:
    """Describe what is out of the tolerance of a precision, ``fp32`` or ``fp16``; ``None`` if nothing is."""
    largest_ratio, least_equal = _LIMITS[precision]
    allowed = largest_ratio * max(1.0, parity.max_abs_logit)
    if not parity.max_abs_logit_diff <= allowed:  # also true for NaN
        return f"logits differ by {parity.max_abs_logit_diff:.3g}, allowed {allowed:.3g}"
    if parity.equal_labels < least_equal:
        return f"{parity.equal_labels:.3%} of labels are equal, required {least_equal:.1%}"
    return None


def require_parity(parity: Parity, precision: str) -> None:
    """Refuse an artefact that is out of the tolerance of its precision, ``fp32`` or ``fp16``.

    Raises:
        ParityError: The logits or the labels differ too much.
    """
    if problem := parity_problem(parity, precision):
        raise ParityError(
            f"the {precision} artefact does not compute what the checkpoint computes: {problem}",
            hint="nothing was written; --no-verify writes it without this check"
            + ("; without --fp16 it may pass" if precision == "fp16" else ""),
        )
