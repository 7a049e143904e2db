"""FP16 conversion: floats become float16, bytes and shapes stay, constants out of range are refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from esnet.checkpoint import load_checkpoint
from esnet.data.scenes import street_scene
from export.errors import GraphError
from export.graph.half import convert_to_half
from export.plan import ExportPlan, graph_from_network

FLOAT, HALF, BYTE, INT64 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.UINT8,
    TensorProto.INT64,
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, [BYTE, BYTE], id="frames-to-labels"),
        pytest.param({"outputs": ("logits",)}, [BYTE, HALF], id="frames-to-logits"),
        pytest.param({"input": "tensor"}, [HALF, BYTE], id="tensor-to-labels"),
    ],
)
def test_float_edges_become_half_and_bytes_stay(settings, expected, make_graph):
    graph = convert_to_half(make_graph(**settings)).graph
    edges = (*graph.input, *graph.output)
    assert [value.type.tensor_type.elem_type for value in edges] == expected


def test_no_float32_is_left_inside(make_graph):
    graph = convert_to_half(
        make_graph(outputs=("labels", "confidence"), optimized_for="openvino")
    ).graph
    casts = {node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    assert casts == {HALF, BYTE}
    assert {tensor.data_type for tensor in graph.initializer} == {HALF, INT64}


def test_trained_network_scores_nearly_the_same_in_half(run_onnx):
    plan = ExportPlan(size_hw=(64, 128), outputs=("logits",))
    model = graph_from_network(load_checkpoint("camvid").network, plan)
    frames = street_scene((64, 128)).image[None]
    [full], [half] = (run_onnx(m, frames=frames) for m in (model, convert_to_half(model)))
    np.testing.assert_allclose(half, full, atol=0.01 * np.abs(full).max())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(7e4, r"'big' reaches 7e\+04, the FP16 limit is 65504", id="beyond-the-range"),
        pytest.param(np.nan, "'big' reaches nan", id="nan"),
    ],
)
def test_constant_that_half_cannot_hold_is_refused(value, message, make_model):
    model = make_model(
        [helper.make_node("Mul", ["x", "big"], ["y"])],
        inputs={"x": ["N", 1]},
        outputs={"y": ["N", 1]},
        constants={"big": np.float32([value])},
    )
    with pytest.raises(GraphError, match=message) as caught:
        convert_to_half(model)
    assert caught.value.hint == "export without --fp16"


def test_largest_half_is_held(make_model, run_onnx):
    model = make_model(
        [helper.make_node("Mul", ["x", "big"], ["y"])],
        inputs={"x": ["N", 1]},
        outputs={"y": ["N", 1]},
        constants={"big": np.float32([65504])},
    )
    [product] = run_onnx(convert_to_half(model), x=np.ones((1, 1), np.float16))
    assert product == 65504
