"""A graph with uint8 input gives the outputs of the graph with normalised floats, borders included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.errors import GraphError
from export.graph.editor import op_counts
from export.graph.frames import attach_frames_input

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="session")
def make_stem(make_model):
    """Make ESNet's folded first block: a convolution and a pool, optionally with an affine after the pool."""

    def make(pool_kernel=2, *, has_affine=True, seed=0):
        random = np.random.default_rng(seed)
        constants = {
            "w": random.normal(size=(5, 3, 3, 3)),
            "b": random.normal(size=5),
            "pool.scale": random.normal(size=(3, 1, 1)),
            "pool.shift": random.normal(size=(3, 1, 1)),
        }
        pads = [pool_kernel // 3] * 4
        kernel = {"kernel_shape": [pool_kernel] * 2, "strides": [2, 2], "pads": pads}
        nodes = [
            helper.make_node("Conv", ["tensor", "w", "b"], ["conv"], strides=[2, 2], pads=[1] * 4),
            helper.make_node("MaxPool", ["tensor"], ["pool"], name="pool", **kernel),
            helper.make_node("Mul", ["pool", "pool.scale"], ["scaled"], name="mul"),
            helper.make_node("Add", ["scaled", "pool.shift"], ["shifted"], name="add"),
            helper.make_node("Concat", ["conv", "shifted"], ["y"], axis=1),
        ]
        if not has_affine:
            nodes[2:] = [helper.make_node("Concat", ["conv", "pool"], ["y"], axis=1)]
        return make_model(
            nodes,
            inputs={"tensor": ["N", 3, 8, 16]},
            outputs={"y": ["N", 8, 4, 8]},
            constants={name: value.astype(np.float32) for name, value in constants.items()},
        )

    return make


def unit(low: float, high: float) -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(*[st.floats(low, high)] * 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    mean=st.just(ZERO) | unit(0, 1),
    std=st.just(ONE) | unit(0.1, 1),
    pool_kernel=st.sampled_from([2, 3]),
    has_affine=st.booleans(),
    seed=st.integers(0, 100),
)
def test_bytes_give_what_normalised_floats_gave(
    mean, std, pool_kernel, has_affine, seed, make_stem, run_onnx
):
    model = make_stem(pool_kernel, has_affine=has_affine, seed=seed)
    frames = np.random.default_rng(seed).integers(0, 256, (2, 8, 16, 3), dtype=np.uint8)
    tensor = ((frames / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    [before] = run_onnx(model, tensor=tensor)
    [after] = run_onnx(attach_frames_input(model, mean=mean, std=std), frames=frames)
    np.testing.assert_allclose(after, before, atol=1e-5 * max(1, np.abs(before).max()))


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        pytest.param(ZERO, ["Cast", "Transpose"], id="no-mean"),
        pytest.param(MEAN, ["Cast", "Sub", "Transpose"], id="mean"),
    ],
)
def test_bytes_are_cast_first_and_a_mean_costs_one_sub(mean, expected, make_stem):
    nodes = attach_frames_input(make_stem(), mean=mean, std=STD).graph.node
    assert [
        node.op_type for node in nodes if node.op_type in ("Cast", "Sub", "Transpose")
    ] == expected


@pytest.mark.parametrize(
    ("has_affine", "num_added"),
    [pytest.param(True, 0, id="affine"), pytest.param(False, 1, id="bare-pool")],
)
def test_scale_costs_a_mul_behind_a_bare_pool_alone(has_affine, num_added, make_stem):
    model = make_stem(has_affine=has_affine)
    before, after = (
        op_counts(graph.node).get("Mul", 0)
        for graph in (model.graph, attach_frames_input(model, mean=MEAN, std=STD).graph)
    )
    assert after - before == num_added


def test_input_is_uint8_frames_of_the_same_size(make_stem):
    [frames] = attach_frames_input(make_stem(), mean=ZERO, std=ONE).graph.input
    expected = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 8, 16, 3])
    assert frames == expected


def test_std_of_zero_is_refused(make_stem):
    with pytest.raises(GraphError, match="std must be above 0 in every channel"):
        attach_frames_input(make_stem(), mean=ZERO, std=(1.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("node", "dims", "message"),
    [
        pytest.param(("Relu", ["x"], {}), [1, 3, 8, 8], "feeds Relu 'reader'", id="relu"),
        pytest.param(
            ("Conv", ["x", "w"], {"group": 3}),
            [1, 3, 8, 8],
            "feeds Conv 'reader'",
            id="grouped-conv",
        ),
        pytest.param(("Relu", ["x"], {}), [1, 1, 8, 8], r"got \[1, 1, 8, 8\]", id="one-channel"),
        pytest.param(("Relu", ["x"], {}), [3, 8, 8], r"got \[3, 8, 8\]", id="no-batch-axis"),
        pytest.param(
            ("Add", ["x", "z"], {}), [1, 3, 8, 8], "must have one input, got 2", id="two-inputs"
        ),
    ],
)
def test_graph_that_cannot_take_frames_is_refused(node, dims, message, make_model):
    op, inputs, attributes = node
    model = make_model(
        [helper.make_node(op, inputs, ["y"], name="reader", **attributes)],
        inputs={name: dims for name in inputs if name != "w"},
        outputs={"y": [f"d{axis}" for axis in range(len(dims))]},
        constants={"w": np.ones((3, 1, 1, 1), np.float32)},
    )
    with pytest.raises(GraphError, match=message):
        attach_frames_input(model, mean=ZERO, std=ONE)
