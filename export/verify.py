"""Parity check: run the same frames through torch and through the exported graph, and compare."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from esnet.metrics import label_agreement
from esnet.model import ESNet, normalise
from export.metadata import with_card
from export.parity import Parity
from export.plan import ExportPlan, transform_graph
from runtime.artefact.card import LOGITS, ModelCard
from runtime.backend import installed_backends, open_backend
from runtime.machine.onednn import has_bf16
from runtime.media.frames import batch_from_frames, resize_frame
from runtime.segmenter import Segmenter


def measure_parity(
    network: ESNet,
    unfused: onnx.ModelProto,
    model: onnx.ModelProto,
    plan: ExportPlan,
    card: ModelCard,
    frames: Sequence[np.ndarray],
    frames_name: str,
) -> Parity:
    """Run frames through torch, the artefact, and its logits model, and compare logits and labels.

    The logits model has the same transforms as the artefact, but neither the labels head nor padding classes.
    Its logits tell rounding errors from wrong weights. Everything runs on one thread.

    Args:
        network: The checkpoint's network, in evaluation mode.
        unfused: Its unfused graph.
        model: Graph of the artefact.
        plan: Settings of the artefact.
        card: Card of the artefact.
        frames: RGB, uint8 (H, W, 3), any size.
        frames_name: Origin of the frames, for the report.
    """
    logits_plan = replace(plan, outputs=(LOGITS,), upsample=plan.form.upsample)
    logits_model = transform_graph(unfused, logits_plan)
    installed = installed_backends()
    backend = "onnxruntime" if "onnxruntime" in installed else installed[0]
    differences, largest, equal, labels_torch = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="esnet-parity-") as folder:
        paths = Path(folder, "artefact.onnx"), Path(folder, "logits.onnx")
        onnx.save(with_card(model, card), paths[0])
        onnx.save(with_card(logits_model, replace(card, outputs=(LOGITS,))), paths[1])
        with (
            Segmenter(open_backend(paths[0], backend, precision="fp32", threads=1)) as artefact,
            open_backend(paths[1], backend, precision="fp32", threads=1) as logits_backend,
            _one_torch_thread(),
            torch.inference_mode(),
        ):
            for frame in (resize_frame(frame, plan.size_hw) for frame in frames):
                images_NHWC = torch.tensor(frame)[None]
                expected = network(normalise(images_NHWC, plan.mean, plan.std))[0].numpy()
                logits = logits_backend.infer(batch_from_frames([frame], card))[0][0]
                labels = artefact.segment(frame)
                differences.append(float(np.abs(logits.astype(np.float32) - expected).max()))
                largest.append(float(np.abs(expected).max()))
                labels_torch.append(expected.argmax(0).astype(np.uint8))
                equal.append(float((labels == labels_torch[-1]).mean()))
        equal_bf16 = _agreement_in_bf16(paths[0], plan, frames, labels_torch)
    return Parity(
        max_abs_logit_diff=float(np.max(differences)),
        max_abs_logit=max(largest),
        equal_labels=float(np.mean(equal)),
        num_frames=len(frames),
        frames=frames_name,
        backend=backend,
        equal_labels_bf16=equal_bf16,
    )


def _agreement_in_bf16(
    path: Path, plan: ExportPlan, frames: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> float | None:
    """Get the share of equal labels of an artefact in bf16; ``None`` without OpenVINO or bf16 arithmetic."""
    if "openvino" not in installed_backends() or not has_bf16():
        return None
    with Segmenter.open(path, backend="openvino", precision="bf16", threads=1) as artefact:
        found = [artefact.segment(resize_frame(frame, plan.size_hw)) for frame in frames]
    return label_agreement(found, labels)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let torch compute on one thread: idle threads spin, which costs more CPU time than the network."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
