"""FP16 engines from an FP32 artefact: nodes that stay in FP32, and the check of the converted graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.errors import ParityError
from export.graph.editor import GraphEditor
from export.graph.half import LARGEST_HALF
from export.graph.head import without_padding_logits
from export.graph.scores import find_scores
from export.parity import Parity, parity_frames, parity_problem
from export.quantization.calibration import activation_peaks, open_on_cpu, with_outputs
from runtime.artefact.card import ModelCard
from runtime.media.frames import batch_from_frames
from runtime.media.sources import open_source

_MAX_RANGE_FRAMES = 16
_OVERFLOW_MARGIN = 2.0  # other frames may reach larger activations than those measured


def overflowing_nodes(
    model: onnx.ModelProto, card: ModelCard, frames: Path | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the nodes whose activations could overflow in FP16 on the user's frames; with remarks."""
    if frames is None:
        return (), ("FP16 is compared on street scenes only; pass --frames DIR",)
    images = islice(open_source(frames), _MAX_RANGE_FRAMES)
    batches = (batch_from_frames([frame.image], card) for frame in images)
    peaks = activation_peaks(without_padding_logits(model), batches)
    large = {name for name, peak in peaks.items() if peak * _OVERFLOW_MARGIN > LARGEST_HALF}
    nodes = [node.name for node in model.graph.node if large & {*node.input, *node.output}]
    top = max(peaks, key=lambda name: peaks[name])
    kept = f"{len(nodes)} nodes stay in FP32: {', '.join(nodes[:6])}" if nodes else "no FP32 nodes"
    note = f"largest activation {peaks[top]:.4g} at {top}, FP16 limit 65504: {kept}"
    return tuple(nodes), (note,)


def check_half(
    model: onnx.ModelProto, half: onnx.ModelProto, card: ModelCard, frames: Path | None
) -> Parity:
    """Compare the scores and labels of an FP16 graph with those of its FP32 artefact, in ONNX Runtime.

    The tolerance is that of ``to-onnx --fp16``.

    Args:
        model: The FP32 graph.
        half: The same graph in FP16.
        card: Card of the FP32 graph.
        frames: Image, folder or video to compare on; ``None`` generates street scenes.

    Raises:
        ParityError: They differ too much.
        BackendUnavailable: No backend is installed.
    """
    images, origin = parity_frames(frames, card.size_hw)
    run, run_half = _open_scores(model, card), _open_scores(half, replace(card, precision="fp16"))
    pairs = [(run(image), run_half(image)) for image in images]
    parity = Parity(
        max_abs_logit_diff=max(float(np.abs(found - wanted).max()) for wanted, found in pairs),
        max_abs_logit=max(float(np.abs(wanted).max()) for wanted, _ in pairs),
        equal_labels=float(np.mean([a.argmax(1) == b.argmax(1) for a, b in pairs])),
        num_frames=len(images),
        frames=origin,
        backend="onnxruntime",
    )
    if problem := parity_problem(parity, "fp16"):
        raise ParityError(
            f"the FP16 graph does not compute what the FP32 artefact computes: {problem}",
            hint="nothing was built; --frames DIR keeps in FP32 what overflows, --fp32 needs no check, "
            "--no-verify builds without it",
        )
    return parity


def _open_scores(model: onnx.ModelProto, card: ModelCard) -> Callable[[np.ndarray], np.ndarray]:
    """Open a graph in ONNX Runtime; get a function from a frame to its scores, float32 (N, K, ...)."""
    editor = GraphEditor(model)
    name, axis = find_scores(model) or (editor.single_output().name, 1)
    scores = editor.add("Cast", "check.scores", [name], to=TensorProto.FLOAT)
    run = open_on_cpu(with_outputs(editor, {scores: 3 + axis}))

    def compute(frame: np.ndarray) -> np.ndarray:
        (values,) = run(batch_from_frames([frame], card))
        return np.moveaxis(values, axis, 1)[:, : card.num_classes]

    return compute
