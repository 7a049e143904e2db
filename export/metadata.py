"""The model card of an export: made from its plan, and put into the ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx

from esnet.labels import LabelSet
from export.plan import FORMS, ExportPlan, Form
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
    """Write down what an export takes and gives.

    Args:
        plan: What decided the graph.
        labels: The classes that the network scores.
        name: Name of the weights, for people.
        source: The weights, see ``ModelCard.source``.
        created: Versions and command, see ``ModelCard.created``.
    """
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
        precision=plan.precision,
        optimized_for=plan.optimized_for,
        form={
            "upsample": plan.form.upsample,
            "head_classes": plan.form.head_classes(labels.num_classes),
            "opset": plan.opset,
            "suits": _suited_targets(plan, labels.num_classes),
        },
        source=source or {},
        created=created or {},
    )


def _suited_targets(plan: ExportPlan, num_classes: int) -> list[str]:
    """List the engines whose own form this graph has; small heads and large ones can differ in it."""

    def shape(form: Form) -> tuple[str, int]:
        return form.upsample, form.head_classes(num_classes)

    own = {name: replace(plan, optimized_for=name, upsample=None).form for name in FORMS}
    return [name for name, form in own.items() if shape(form) == shape(plan.form)]


def with_card(model: onnx.ModelProto, card: ModelCard) -> onnx.ModelProto:
    """Copy a model with the card among its ``metadata_props``."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [(entry.key, entry.value) for entry in result.metadata_props if entry.key != CARD_KEY]
    onnx.helper.set_model_props(result, dict([*kept, (CARD_KEY, card.to_json())]))
    return result
