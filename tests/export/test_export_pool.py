"""Max-pool on uint8 frames: bit-identical, and applied only where that holds."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.graph.pool import pool_bytes
from export.plan import ExportPlan, graph_from_network
from export.quantization.check import run_unoptimized
from tests.conftest import random_network


def pooled_graph(*, mean=None, kernel=(2, 2), strides=(2, 2), between=None) -> onnx.ModelProto:
    """Make frames, cast, optional mean, transpose, optional other node, max-pool and a reader."""
    nodes = [helper.make_node("Cast", ["frames"], ["cast"], name="cast", to=TensorProto.FLOAT)]
    tensor, constants = "cast", []
    if mean is not None:
        constants.append(numpy_helper.from_array(np.asarray(mean, np.float32), "mean"))
        nodes.append(helper.make_node("Sub", [tensor, "mean"], ["sub"], name="sub"))
        tensor = "sub"
    nodes.append(helper.make_node("Transpose", [tensor], ["t"], name="t", perm=[0, 3, 1, 2]))
    tensor = "t"
    if between is not None:
        nodes.append(helper.make_node(between, [tensor], ["b"], name="b"))
        tensor = "b"
    nodes.append(
        helper.make_node(
            "MaxPool", [tensor], ["p"], name="pool", kernel_shape=kernel, strides=strides
        )
    )
    nodes.append(helper.make_node("Neg", ["p"], ["y"], name="neg"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 8, 16, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, None, None])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def run(model: onnx.ModelProto, frames: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(model).run(None, {"frames": frames})[0]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    mean=st.none() | st.lists(st.integers(0, 2550).map(lambda x: x / 10), min_size=3, max_size=3),
)
def test_the_result_is_the_same_to_the_bit(seed, batch, mean):
    model = pooled_graph(mean=mean)
    frames = np.random.default_rng(seed).integers(0, 256, (batch, 8, 16, 3), np.uint8)
    rewritten = pool_bytes(model)
    assert not [node for node in rewritten.graph.node if node.op_type == "MaxPool"]
    onnx.checker.check_model(rewritten, full_check=True)
    assert (run(rewritten, frames) == run(model, frames)).all()


@pytest.mark.parametrize(
    "settings_of",
    [
        pytest.param({"kernel": (3, 3)}, id="3x3"),
        pytest.param({"strides": (1, 1)}, id="stride 1"),
        pytest.param({"between": "Neg"}, id="not monotone"),
    ],
)
def test_another_pool_is_left_alone(settings_of):
    model = pooled_graph(**settings_of)
    assert [node.op_type for node in pool_bytes(model).graph.node] == [
        node.op_type for node in model.graph.node
    ]


@pytest.mark.parametrize("optimized_for", ["openvino", "onnxruntime", "tensorrt"])
def test_the_whole_network_labels_alike_to_the_bit(optimized_for):
    plan = ExportPlan(size_hw=(64, 128), optimized_for=optimized_for)
    graph = graph_from_network(random_network(), plan)
    rewritten = pool_bytes(graph)
    pools = [[n.op_type for n in g.graph.node].count("MaxPool") for g in (graph, rewritten)]
    assert pools[1] == pools[0] - 1
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), np.uint8)
    assert (run_unoptimized(graph, [frames])[0] == run_unoptimized(rewritten, [frames])[0]).all()
