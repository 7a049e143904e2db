"""The model card of an export: made from its plan and stored in the ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx

from esnet.labels import LabelSet
from export.plan import FORMS, ExportPlan
from runtime.artefact.card import CARD_KEY, ModelCard
from runtime.media.frames import RESIZE_FILTER


def card_from_plan(
    plan: ExportPlan,
    labels: LabelSet,
    *,
    name: str,
    source: Mapping[str, Any] | None = None,
    created: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Make the card of an export of the weights ``name``; the fields of ``ModelCard`` are described there."""
    return ModelCard(
        name=name,
        size_hw=plan.size_hw,
        batch=plan.batch,
        input=plan.input,
        outputs=plan.outputs,
        color="RGB",
        mean=plan.mean,
        std=plan.std,
        resize=RESIZE_FILTER,
        label_set=labels.name,
        class_names=labels.class_names,
        palette=labels.palette,
        ignore_index=labels.ignore_index,
        label_values=labels.label_values,
        precision=plan.precision,
        optimized_for=plan.optimized_for,
        form={
            "upsample": plan.form.upsample,
            "head_classes": plan.form.head_classes(labels.num_classes),
            "opset": plan.opset,
            "suits": _suited_runtimes(plan, labels.num_classes),
        },
        source=source or {},
        created=created or {},
    )


def _suited_runtimes(plan: ExportPlan, num_classes: int) -> list[str]:
    """List the runtimes whose own form gives the same graph; this depends on the number of classes."""
    forms = {name: replace(plan, optimized_for=name, upsample=None).form for name in FORMS}
    shape = plan.form.upsample, plan.form.head_classes(num_classes)
    return [
        n for n, form in forms.items() if (form.upsample, form.head_classes(num_classes)) == shape
    ]


def with_card(model: onnx.ModelProto, card: ModelCard) -> onnx.ModelProto:
    """Copy a model and put the card into its ``metadata_props``; other entries stay."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = {entry.key: entry.value for entry in result.metadata_props if entry.key != CARD_KEY}
    onnx.helper.set_model_props(result, {**kept, CARD_KEY: card.to_json()})
    return result
