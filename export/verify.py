"""Compare an artefact with its checkpoint: the same frames through torch and through the exported graph."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from esnet.model import ESNet
from export.errors import ParityError
from export.metadata import with_card
from export.plan import ExportPlan, graph_from_network
from runtime.artefact.card import LOGITS, ModelCard
from runtime.backend import installed_backends, open_backend
from runtime.media.frames import batch_from_frames, resize_frame
from runtime.segmenter import Segmenter

# Largest logit difference over the largest logit, and the smallest share of equal labels, that still pass.
_LIMITS = {"fp32": (1e-3, 0.999), "fp16": (3e-2, 0.99)}

_REFERENCE_BACKEND = "onnxruntime"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far an artefact is from its checkpoint."""

    max_abs_logit_diff: float
    """Largest difference of any logit."""
    max_abs_logit: float
    """Largest logit of the checkpoint, to judge the difference by."""
    equal_labels: float
    """Share of pixels with the same class, 0 to 1."""
    num_frames: int
    """Frames compared."""
    frames: str
    """Where they come from."""
    backend: str
    """What ran the artefact."""

    def problem(self, precision: str) -> str | None:
        """Say what is out of tolerance for this precision; ``None`` when all is well."""
        largest_ratio, least_equal = _LIMITS[precision]
        allowed = largest_ratio * max(1.0, self.max_abs_logit)
        if not self.max_abs_logit_diff <= allowed:  # NaN is not
            return f"logits differ by {self.max_abs_logit_diff:.3g}, allowed {allowed:.3g}"
        if self.equal_labels < least_equal:
            return f"{self.equal_labels:.3%} of labels are equal, required {least_equal:.1%}"
        return None

    def as_text(self) -> str:
        """Sum up in a line."""
        return (
            f"max |logit difference| {self.max_abs_logit_diff:.2g} of {self.max_abs_logit:.3g}, "
            f"equal labels {100 * self.equal_labels:.6g} %, {self.num_frames} {self.frames}, "
            f"on {self.backend}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for the card."""
        return asdict(self)


def measure_parity(
    network: ESNet,
    model: onnx.ModelProto,
    plan: ExportPlan,
    card: ModelCard,
    frames: Sequence[np.ndarray],
    *,
    frames_name: str,
) -> Parity:
    """Run frames through torch, through the artefact, and through its twin that gives logits.

    The twin is the same graph but for the head (no labels, no padding classes), so that rounding can be told
    from mistakes.

    Args:
        network: The checkpoint's network.
        model: The artefact's graph.
        plan: What it was made by.
        card: What it says of itself.
        frames: RGB, uint8 (H, W, 3), any size.
        frames_name: Where they come from, for the report.

    Returns:
        The largest difference over all frames.
    """
    twin_plan = replace(plan, outputs=(LOGITS,), upsample=plan.form.upsample)
    twin = graph_from_network(network, twin_plan)
    installed = installed_backends()
    backend = _REFERENCE_BACKEND if _REFERENCE_BACKEND in installed else installed[0]
    differences, largest, equal = [], [], []
    with tempfile.TemporaryDirectory(prefix="esnet-parity-") as folder:
        paths = Path(folder, "artefact.onnx"), Path(folder, "twin.onnx")
        onnx.save(with_card(model, card), paths[0])
        onnx.save(with_card(twin, replace(card, outputs=(LOGITS,))), paths[1])
        with (
            Segmenter(open_backend(paths[0], backend, precision="fp32")) as artefact,
            open_backend(paths[1], backend, precision="fp32") as twin_backend,
        ):
            for frame in frames:
                expected = torch_logits(network, frame, plan)
                batch = batch_from_frames([frame] * plan.batch[0], card)
                logits = twin_backend.infer(batch)[0][0].astype(np.float32)
                labels = artefact.segment(resize_frame(frame, plan.size_hw))
                differences.append(float(np.abs(logits - expected).max()))
                largest.append(float(np.abs(expected).max()))
                equal.append(float((labels == expected.argmax(0)).mean()))
    return Parity(
        max_abs_logit_diff=float(np.max(differences)),
        max_abs_logit=max(largest),
        equal_labels=float(np.mean(equal)),
        num_frames=len(frames),
        frames=frames_name,
        backend=backend,
    )


def torch_logits(network: ESNet, frame: np.ndarray, plan: ExportPlan) -> np.ndarray:
    """Run one frame through the checkpoint.

    Args:
        network: In evaluation mode.
        frame: RGB, uint8 (H, W, 3), any size.
        plan: Gives size, mean and deviation.

    Returns:
        Logits (K, H, W) float32.
    """
    scaled = resize_frame(frame, plan.size_hw).astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(plan.mean, np.float32)) / np.asarray(plan.std, np.float32)
    with torch.inference_mode():
        logits: np.ndarray = network(torch.from_numpy(normalised).permute(2, 0, 1)[None])[0].numpy()
    return logits


def require_parity(parity: Parity, precision: str) -> None:
    """Refuse an artefact that is out of tolerance.

    Raises:
        ParityError: With the figure that broke it.
    """
    if problem := parity.problem(precision):
        raise ParityError(
            f"the {precision} artefact does not compute what the checkpoint computes: {problem}",
            hint="nothing was written; --no-verify writes it all the same"
            + ("; without --fp16 it may pass" if precision == "fp16" else ""),
        )
