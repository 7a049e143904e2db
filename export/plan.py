"""What is asked of an export, and the ordered list of transforms that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

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

Transform = Callable[[onnx.ModelProto], onnx.ModelProto]

UPSAMPLES = ("transpose", "subpixel", "mixed")
OPSETS = range(13, 22)
DEFAULT_BATCH = BatchRange(1, 1, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How the same function is written for an engine."""

    upsample: str
    """``transpose``: transposed convolutions; ``subpixel``: convolution and shuffle; ``mixed``: that in the
    head alone."""
    class_multiple: int = 1
    """The head is padded to a multiple of this many classes,"""
    least_classes: int = 1
    """and to at least so many."""

    @property
    def pads_classes(self) -> bool:
        """Whether there may be classes to add."""
        return self.class_multiple > 1 or self.least_classes > 1

    def head_classes(self, num_classes: int) -> int:
        """Count the classes of the head, padding included."""
        return padded_width(num_classes, self.class_multiple, self.least_classes)


# The best-measured form of each engine: TensorRT by kernels and bytes (a padded head saves the slice kernel;
# the shuffle costs extra ones), the CPU engines by time, benchmarks/results/forms-*.json. OpenVINO 2026.4
# reorders a head of up to 64 sub-pixel channels with a reference kernel, 20 ms at 512x1024: 17 classes avoid
# it.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "tensorrt": Form(upsample="transpose", class_multiple=8),
        "openvino": Form(upsample="mixed", least_classes=17),
        "onnxruntime": Form(upsample="mixed"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """Everything that decides the graph, apart from the weights."""

    size_hw: tuple[int, int] = (512, 1024)
    """Input height and width in pixels, multiples of 8."""
    batch: BatchRange = DEFAULT_BATCH
    """Smallest, usual and largest batch; equal ends make it a fixed axis."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RGB mean, 0-1 scale."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB deviation, 0-1 scale."""
    input: str = FRAMES
    """``frames`` or ``tensor``; see ``ModelCard.input``."""
    outputs: tuple[str, ...] = (LABELS,)
    """``labels``, ``labels`` and ``confidence``, or ``logits``."""
    optimized_for: str = "tensorrt"
    """Key of ``FORMS``."""
    upsample: str | None = None
    """One of ``UPSAMPLES``; ``None`` takes the optimized_for's own."""
    precision: str = "fp32"
    """``fp32`` or ``fp16``."""
    opset: int = 17
    """ONNX operator set; 17 is the newest that TensorRT 8.6 parses."""

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
                f"opset {self.opset} is out of range, {OPSETS.start} to {OPSETS.stop - 1} can be written",
                hint="17 is the newest that every TensorRT from 8.6 on parses",
            )
        if any(side < 8 or side % 8 for side in self.size_hw):
            raise ExportError(f"size {self.size_hw} must be multiples of 8 in height and width")
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise ExportError(f"batch {self.batch} must rise: 1 <= MIN <= OPT <= MAX")
        is_scaled = all(-1 <= m <= 1 for m in self.mean) and all(0 < s <= 1 for s in self.std)
        if not is_scaled:  # NaN is not
            raise ExportError(
                f"mean {self.mean} and std {self.std} must be on the 0-1 scale, std above 0",
                hint="divide values of the 0-255 scale by 255",
            )

    @property
    def form(self) -> Form:
        """The form of the optimized_for, with the upsampling that was asked for."""
        form = FORMS[self.optimized_for]
        upsample = self.upsample or form.upsample
        if self.outputs == (LOGITS,):  # whose reader expects K of them
            return Form(upsample=upsample)
        return replace(form, upsample=upsample)

    def transforms(self) -> list[Transform]:
        """List what is done to the published graph, in order."""
        steps: list[Transform] = [fold_batchnorm]
        if self.form.pads_classes:
            pad = partial(
                pad_classes,
                multiple=self.form.class_multiple,
                at_least=self.form.least_classes,
            )
            steps.append(pad)
        if self.form.upsample != "transpose":
            steps.append(partial(upsample_to_subpixel, last_only=self.form.upsample == "mixed"))
        if self.input == FRAMES:
            steps.append(partial(attach_frames_input, mean=self.mean, std=self.std))
        if self.outputs != (LOGITS,):
            steps.append(partial(append_labels, confidence=CONFIDENCE in self.outputs))
        if self.precision == "fp16":
            steps.append(convert_to_half)
        return steps


def unfused_graph(network: ESNet, plan: ExportPlan) -> onnx.ModelProto:
    """Write the network as published, before any transform."""
    low, _, high = plan.batch
    return onnx_from_network(
        network, plan.size_hw, batch=low if low == high else None, opset=plan.opset
    )


def graph_from_network(network: ESNet, plan: ExportPlan) -> onnx.ModelProto:
    """Write the network and apply the plan's transforms; no card yet.

    Args:
        network: Any family, in evaluation mode.
        plan: What is asked for.

    Returns:
        A checked model, float32 or float16, inputs and outputs as the plan says.
    """
    model = unfused_graph(network, plan)
    for transform in plan.transforms():
        model = transform(model)
    return model
