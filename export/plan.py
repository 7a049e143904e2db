"""Export settings, and the graph transforms that they lead to, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from esnet.model import ESNet
from export.errors import ExportError
from export.graph.batchnorm import fold_batchnorm
from export.graph.frames import attach_frames_input
from export.graph.half import convert_to_half
from export.graph.head import append_labels, pad_classes, padded_width
from export.graph.subpixel import upsample_to_subpixel
from export.graph_builder import onnx_from_network
from runtime.artefact.card import CONFIDENCE, FRAMES, LABELS, LOGITS, TENSOR, BatchRange

UPSAMPLES = ("transpose", "subpixel", "mixed")
OPSETS = range(13, 22)
DEFAULT_BATCH = BatchRange(1, 1, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Graph form: one of several exact ways to express the same network."""

    upsample: str
    """``transpose``: transposed convolutions; ``subpixel``: convolution and depth-to-space; ``mixed``:
    subpixel in the head only."""
    class_multiple: int = 1
    """The number of head classes is padded to a multiple of this,"""
    least_classes: int = 1
    """and to at least this."""

    def head_classes(self, num_classes: int) -> int:
        """Count the classes of the head, padding included."""
        return padded_width(num_classes, self.class_multiple, self.least_classes)


# The fastest form for each runtime: for TensorRT by kernels and memory traffic (a padded head saves the slice
# kernel, a shuffle adds kernels), for the CPU runtimes by time, benchmarks/results/forms-*.json. OpenVINO
# 2026.4 reorders a float head of up to 64 sub-pixel channels with a reference kernel, 20 ms at 512x1024; 17
# classes avoid it. An 8-bit head has no such kernel, so quantization trims the padding.
FORMS = {
    "tensorrt": Form(upsample="transpose", class_multiple=8),
    "openvino": Form(upsample="mixed", least_classes=17),
    "onnxruntime": Form(upsample="mixed"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """Settings that determine the graph, apart from the weights."""

    size_hw: tuple[int, int] = (512, 1024)
    """Input height and width in pixels, multiples of 8."""
    batch: BatchRange = DEFAULT_BATCH
    """Batch sizes; a fixed range makes the batch axis fixed."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RGB mean, 0-1 scale."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB standard deviation, 0-1 scale."""
    input: str = FRAMES
    """``frames`` or ``tensor``; see ``ModelCard.input``."""
    outputs: tuple[str, ...] = (LABELS,)
    """``labels``, ``labels`` and ``confidence``, or ``logits``."""
    optimized_for: str = "tensorrt"
    """Key of ``FORMS``."""
    upsample: str | None = None
    """One of ``UPSAMPLES``; ``None`` takes the one of ``optimized_for``."""
    precision: str = "fp32"
    """``fp32`` or ``fp16``."""
    opset: int = 17
    """ONNX operator set; TensorRT 8.6 parses up to 17."""

    def __post_init__(self) -> None:
        for value, allowed, what in (
            (self.input, (FRAMES, TENSOR), "input"),
            (self.outputs, ((LABELS,), (LABELS, CONFIDENCE), (LOGITS,)), "output"),
            (self.optimized_for, tuple(FORMS), "optimized_for"),
            (self.upsample, (None, *UPSAMPLES), "upsample"),
            (self.precision, ("fp32", "fp16"), "precision"),
        ):
            if value not in allowed:
                raise ExportError(f"{what} {value!r} is not one of {allowed}")
        if self.opset not in OPSETS:
            raise ExportError(
                f"opset {self.opset} is out of range, {OPSETS.start} to {OPSETS.stop - 1} are supported",
                hint="TensorRT 8.6 parses up to 17",
            )
        if any(side < 8 or side % 8 for side in self.size_hw):
            raise ExportError(f"size {self.size_hw} must be multiples of 8 in height and width")
        if not 1 <= self.batch.min <= self.batch.opt <= self.batch.max:
            raise ExportError(f"batch {self.batch} is out of order: 1 <= MIN <= OPT <= MAX")
        is_scaled = all(-1 <= m <= 1 for m in self.mean) and all(0 < s <= 1 for s in self.std)
        if not is_scaled:  # NaN fails both comparisons
            raise ExportError(
                f"mean {self.mean} and std {self.std} must be on the 0-1 scale, std above 0",
                hint="divide values of the 0-255 scale by 255",
            )

    @property
    def form(self) -> Form:
        """Form of ``optimized_for``, with the requested upsampling."""
        form = FORMS[self.optimized_for]
        upsample = self.upsample or form.upsample
        if self.outputs == (LOGITS,):  # callers expect K channels
            return Form(upsample=upsample)
        return replace(form, upsample=upsample)


def transform_graph(unfused: onnx.ModelProto, plan: ExportPlan) -> onnx.ModelProto:
    """Apply the plan's transforms, in order, to the graph of ``onnx_from_network``.

    Args:
        unfused: Graph of the plan's size, batch and opset, ``tensor`` (N, 3, H, W) float32 to ``logits``
            (N, K, H, W) float32. Not modified.
        plan: Gives the transforms.

    Returns:
        A checked model without a card, float32 or float16, with the plan's inputs and outputs.

    Raises:
        GraphError: A transform cannot rewrite the graph.
    """
    form = plan.form
    model = fold_batchnorm(unfused)
    model = pad_classes(model, multiple=form.class_multiple, at_least=form.least_classes)
    if form.upsample != "transpose":
        model = upsample_to_subpixel(model, last_only=form.upsample == "mixed")
    if plan.input == FRAMES:
        model = attach_frames_input(model, mean=plan.mean, std=plan.std)
    if plan.outputs != (LOGITS,):
        model = append_labels(model, confidence=CONFIDENCE in plan.outputs)
    return convert_to_half(model) if plan.precision == "fp16" else model


def graph_from_network(network: ESNet, plan: ExportPlan) -> onnx.ModelProto:
    """Write a network as ONNX and apply the plan's transforms; see ``transform_graph``."""
    unfused = onnx_from_network(network, plan.size_hw, plan.batch, plan.opset)
    return transform_graph(unfused, plan)
