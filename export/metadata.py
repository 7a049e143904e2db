"""Put the model card into an ONNX model."""

from __future__ import annotations

import onnx

from runtime.card import CARD_KEY, ModelCard


def with_card(model: onnx.ModelProto, card: ModelCard) -> onnx.ModelProto:
    """Copy a model with the card among its ``metadata_props``."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [(entry.key, entry.value) for entry in result.metadata_props if entry.key != CARD_KEY]
    onnx.helper.set_model_props(result, dict([*kept, (CARD_KEY, card.to_json())]))
    return result
