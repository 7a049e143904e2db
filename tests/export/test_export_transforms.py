"""Every transform of ``export.graph`` leaves its input model unchanged."""

from __future__ import annotations

from functools import partial

import pytest

from export.graph.batchnorm import fold_batchnorm
from export.graph.frames import attach_frames_input
from export.graph.half import convert_to_half
from export.graph.head import append_labels, pad_classes
from export.graph.subpixel import upsample_to_subpixel
from export.graph_builder import onnx_from_network
from runtime.artefact.card import BatchRange


@pytest.mark.parametrize(
    "transform",
    [
        fold_batchnorm,
        pad_classes,
        upsample_to_subpixel,
        partial(attach_frames_input, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        append_labels,
        convert_to_half,
    ],
    ids=lambda transform: getattr(transform, "func", transform).__name__,
)
def test_transform_changes_its_result_and_not_its_input(transform, make_network):
    published = onnx_from_network(make_network("zh320"), (64, 128), BatchRange(1, 1, 8), opset=17)
    model = published if transform is fold_batchnorm else fold_batchnorm(published)
    before = model.SerializeToString()
    result = transform(model)
    assert model.SerializeToString() == before
    assert result.SerializeToString() != before
