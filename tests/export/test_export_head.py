"""Head: padding classes are never selected, labels are the argmax, confidence is the top probability."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.errors import GraphError
from export.graph.editor import dims_of, op_counts
from export.graph.head import append_labels, pad_classes

SIZE_HW = (4, 6)


@pytest.fixture(scope="session")
def make_deconv_head(make_model):
    """Make ``x -> ConvTranspose -> logits``, optionally with a Relu at the end."""

    def make(num_classes, *, has_relu=False, seed=0):
        random = np.random.default_rng(seed)
        made = "up" if has_relu else "logits"
        nodes = [
            helper.make_node("ConvTranspose", ["x", "w", "b"], [made], name="up", strides=[2, 2])
        ]
        if has_relu:
            nodes.append(helper.make_node("Relu", ["up"], ["logits"], name="relu"))
        return make_model(
            nodes,
            inputs={"x": ["N", 2, 2, 3]},
            outputs={"logits": ["N", num_classes, *SIZE_HW]},
            constants={
                "w": random.normal(size=(2, num_classes, 2, 2)).astype(np.float32),
                "b": random.normal(size=num_classes).astype(np.float32),
            },
        )

    return make


@pytest.fixture(scope="session")
def make_plain_head(make_model):
    """Make ``x -> logits``: identity, or a shuffle of four groups."""

    def make(num_classes, *, is_shuffled, opset=17):
        dims = ["N", num_classes, *SIZE_HW]
        node = helper.make_node("Identity", ["x"], ["logits"], name="head")
        if is_shuffled:
            node = helper.make_node("DepthToSpace", ["x"], ["logits"], name="head", blocksize=2)
        return make_model(
            [node],
            inputs={"x": ["N", 4 * num_classes, 2, 3] if is_shuffled else dims},
            outputs={"logits": dims},
            opset=opset,
        )

    return make


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_classes=st.integers(1, 20),
    multiple=st.integers(1, 8),
    at_least=st.integers(1, 20),
    has_relu=st.booleans(),
    seed=st.integers(0, 100),
)
def test_padding_keeps_the_scores_and_adds_classes_below_them_all(
    num_classes, multiple, at_least, has_relu, seed, make_deconv_head, run_onnx
):
    model = make_deconv_head(num_classes, has_relu=has_relu, seed=seed)
    x = np.random.default_rng(seed).normal(0, 3, (2, 2, 2, 3)).astype(np.float32)
    [before] = run_onnx(model, x=x)
    [after] = run_onnx(pad_classes(model, multiple=multiple, at_least=at_least), x=x)
    np.testing.assert_array_equal(after[:, :num_classes], before)
    np.testing.assert_array_equal(after[:, num_classes:], np.float32(-1e4))


@pytest.mark.parametrize(
    ("num_classes", "settings", "expected"),
    [
        pytest.param(19, {"multiple": 8}, 24, id="19-to-24"),
        pytest.param(8, {"multiple": 8}, 8, id="8-stays"),
        pytest.param(11, {"multiple": 1, "at_least": 17}, 17, id="at-least-17"),
        pytest.param(19, {"multiple": 1, "at_least": 17}, 19, id="19-are-enough"),
    ],
)
def test_padding_widens_the_head_as_asked(num_classes, settings, expected, make_deconv_head):
    [logits] = pad_classes(make_deconv_head(num_classes), **settings).graph.output
    assert dims_of(logits) == ["N", expected, *SIZE_HW]


@pytest.mark.parametrize(
    ("node", "num_constants", "message"),
    [
        pytest.param("Conv", 2, "needs logits from a ConvTranspose with a bias", id="conv"),
        pytest.param(
            "ConvTranspose", 1, "needs logits from a ConvTranspose with a bias", id="no-bias"
        ),
    ],
)
def test_padding_refuses_another_head(node, num_constants, message, make_model):
    constants = {"w": np.ones((2, 2, 1, 1), np.float32), "b": np.ones(2, np.float32)}
    inputs = ["x", *list(constants)[:num_constants]]
    model = make_model(
        [helper.make_node(node, inputs, ["logits"], name="head")],
        inputs={"x": ["N", 2, 4, 4]},
        outputs={"logits": ["N", 2, 4, 4]},
        constants=constants,
    )
    with pytest.raises(GraphError, match=message):
        pad_classes(model)


heads = st.fixed_dictionaries(
    {
        "num_classes": st.integers(1, 12),
        "is_shuffled": st.booleans(),
        "opset": st.sampled_from([13, 17, 18, 21]),
    }
)


def input_shape(model: onnx.ModelProto, batch: int) -> tuple[int, ...]:
    return (batch, *dims_of(model.graph.input[0])[1:])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(head=heads, seed=st.integers(0, 100))
def test_labels_are_the_argmax_and_ties_go_to_the_lowest_class(
    head, seed, make_plain_head, run_onnx
):
    model = make_plain_head(**head)
    x = np.random.default_rng(seed).integers(0, 3, input_shape(model, 2)).astype(np.float32)
    [logits], [labels] = run_onnx(model, x=x), run_onnx(append_labels(model), x=x)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(head=heads, spread=st.sampled_from([0.1, 1, 10, 100]), seed=st.integers(0, 100))
def test_confidence_is_the_top_softmax_probability_in_255ths(
    head, spread, seed, make_plain_head, run_onnx
):
    model = make_plain_head(**head)
    x = np.random.default_rng(seed).normal(0, spread, input_shape(model, 2)).astype(np.float32)
    [logits] = run_onnx(model, x=x)
    labels, confidence = run_onnx(append_labels(model, confidence=True), x=x)
    probability = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    assert (labels.dtype, confidence.dtype) == (np.uint8, np.uint8)
    assert np.abs(confidence - 255 * probability).max() <= 0.5 + 1e-3


def test_shuffled_head_shuffles_the_map_and_not_the_scores(make_plain_head):
    labelled = append_labels(make_plain_head(11, is_shuffled=True))
    assert op_counts(labelled.graph.node) == {
        "Cast": 2,
        "Reshape": 2,
        "ArgMax": 1,
        "DepthToSpace": 1,
    }


@pytest.mark.parametrize("is_shuffled", [False, True], ids=["plain", "shuffled"])
def test_class_indices_reach_uint8_by_way_of_float(is_shuffled, make_plain_head):
    nodes = append_labels(make_plain_head(5, is_shuffled=is_shuffled)).graph.node
    casts = [node.attribute[0].i for node in nodes if node.op_type == "Cast"]
    assert casts == [TensorProto.FLOAT, TensorProto.UINT8]


@pytest.mark.parametrize(
    "dims",
    [
        pytest.param(["N", 257, 4, 4], id="257-classes"),
        pytest.param(["N", "K", 4, 4], id="open-classes"),
        pytest.param(["N", 5, "H", "W"], id="open-size"),
        pytest.param(["N", 5], id="rank-2"),
    ],
)
def test_logits_that_do_not_fit_in_bytes_are_refused(dims, make_model):
    node = helper.make_node("Identity", ["x"], ["logits"])
    model = make_model([node], inputs={"x": dims}, outputs={"logits": dims})
    with pytest.raises(
        GraphError, match=r"needs logits \(N, K, H, W\) of fixed size with K up to 256"
    ):
        append_labels(model)


@pytest.mark.parametrize(
    ("attributes", "dims"),
    [
        pytest.param({"blocksize": 2, "mode": "CRD"}, ["N", 4, 2, 2], id="CRD"),
        pytest.param({"blocksize": 4}, ["N", 16, 1, 1], id="block-size-4"),
    ],
)
def test_shuffle_of_another_order_is_refused(attributes, dims, make_model):
    node = helper.make_node("DepthToSpace", ["x"], ["logits"], name="up", **attributes)
    model = make_model([node], inputs={"x": dims}, outputs={"logits": ["N", 1, 4, 4]})
    with pytest.raises(GraphError, match="shuffle 'up' must be DCR with block size 2"):
        append_labels(model)
