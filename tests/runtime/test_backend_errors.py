"""An error of a library while a batch runs is one of ours, from ``infer`` and from ``stream``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.metadata import with_card
from runtime.artefact.card import BatchRange, ModelCard
from runtime.backend import open_backend
from runtime.errors import ModelFileError


@pytest.fixture
def only_single_frames(make_artefact: Callable[..., Path], tmp_path: Path) -> Path:
    """An artefact whose card allows batches of 4 that its graph cannot compute."""
    model = onnx.load(make_artefact(optimized_for="openvino"))
    card = ModelCard.from_file(make_artefact(optimized_for="openvino"))
    name = model.graph.output[0].name
    model.graph.node[-1].output[0] = "any"
    shape = onnx.numpy_helper.from_array(np.array([1, *card.size_hw]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["any", "shape"], [name]))
    path = tmp_path / "one.onnx"
    onnx.save(with_card(model, replace(card, batch=BatchRange(1, 1, 4))), path)
    return path


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_batch_that_the_library_cannot_compute_is_one_line(only_single_frames, name):
    with open_backend(only_single_frames, name, threads=1) as backend:
        batch = np.zeros((4, *backend.input.item_shape), np.uint8)
        with pytest.raises(ModelFileError, match="batch of 4"):
            backend.infer(batch)
        with pytest.raises(ModelFileError, match="batch of 4"):
            list(backend.stream([batch]))
        assert backend.infer(batch[:1])[0].shape == (1, *backend.card.size_hw)
