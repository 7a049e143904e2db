"""The model card of an export: made from its plan and stored in the ONNX model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from esnet.labels import LabelSet
from export.plan import FORMS, ExportPlan
from runtime.artefact.card import CARD_KEY, ModelCard
from runtime.artefact.onnx_file import GRAPH_KEY, check_graph, read_metadata
from runtime.errors import InvalidInput, ModelFileError
from runtime.files import require_outputs
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
    """Copy a model and add the card and the hash of its graph to ``metadata_props``; other entries stay."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = {entry.key: entry.value for entry in result.metadata_props if entry.key != CARD_KEY}
    digest = hashlib.sha256(result.graph.SerializeToString()).hexdigest()
    onnx.helper.set_model_props(result, {**kept, GRAPH_KEY: digest, CARD_KEY: card.to_json()})
    return result


def require_artefact_output(path: Path, *, source: Path) -> None:
    """Check the path of a new artefact, which may replace an artefact of this toolkit only.

    Raises:
        InvalidInput: See ``require_outputs``, or the file exists and is something else.
    """
    require_outputs(path, source=source, suffixes=(".onnx",))
    if not path.exists():
        return
    try:
        is_own = CARD_KEY in read_metadata(path)
    except ModelFileError:
        is_own = False
    if not is_own:
        raise InvalidInput(
            f"output {path} exists and was not written by esnet-export",
            hint="name another file, or delete it first",
        )


def load_artefact(path: Path) -> tuple[onnx.ModelProto, ModelCard]:
    """Read the graph and the card of an artefact.

    Raises:
        ModelFileError: Missing, damaged, without a card or with another one, or changed after its export.
    """
    card = ModelCard.from_file(path)
    check_graph(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own types, which differ between versions
        raise ModelFileError(
            f"{path} is damaged: {error}", hint="copy it again or export it again"
        ) from error
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    if lacking := {card.input, *card.outputs} - names:
        raise ModelFileError(
            f"{path} does not match its card: its graph has no {', '.join(sorted(lacking))}",
            hint="export it again",
        )
    return model, card
