"""A transposed convolution and its replacement, a convolution with a shuffle, give equal outputs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from export.errors import GraphError
from export.graph.editor import op_counts
from export.graph.head import pad_classes
from export.graph.subpixel import upsample_to_subpixel

GEOMETRY = {
    2: {"kernel_shape": [2, 2], "strides": [2, 2]},
    3: {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
}


@pytest.fixture(scope="session")
def make_upsampler(make_model):
    """Make ``x -> ConvTranspose -> y``, optionally with a Relu after it, and with the given outputs."""

    def make(channels, size_hw, kernel, *, has_bias=True, has_relu=False, outputs=("y",), seed=0):
        random = np.random.default_rng(seed)
        (num_in, num_out), (height, width) = channels, size_hw
        constants = {"w": random.normal(size=(num_in, num_out, kernel, kernel))}
        if has_bias:
            constants["b"] = random.normal(size=num_out)
        geometry = GEOMETRY[kernel]
        made = "up" if has_relu else "y"
        nodes = [
            helper.make_node("ConvTranspose", ["x", *constants], [made], name="up", **geometry)
        ]
        if has_relu:
            nodes.append(helper.make_node("Relu", ["up"], ["y"], name="relu"))
        return make_model(
            nodes,
            inputs={"x": ["N", num_in, height, width]},
            outputs={name: ["N", num_out, 2 * height, 2 * width] for name in outputs},
            constants={name: value.astype(np.float32) for name, value in constants.items()},
        )

    return make


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    size_hw=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.sampled_from([2, 3]),
    has_bias=st.booleans(),
    has_relu=st.booleans(),
    batch=st.integers(1, 3),
)
def test_rewriting_changes_no_output(
    channels, size_hw, kernel, has_bias, has_relu, batch, make_upsampler, run_onnx
):
    model = make_upsampler(channels, size_hw, kernel, has_bias=has_bias, has_relu=has_relu)
    x = np.random.default_rng(1).normal(size=(batch, channels[0], *size_hw)).astype(np.float32)
    [before], [after] = run_onnx(model, x=x), run_onnx(upsample_to_subpixel(model), x=x)
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3])
def test_relu_moves_in_front_of_the_shuffle(kernel, make_upsampler):
    rewritten = upsample_to_subpixel(make_upsampler((2, 3), (4, 4), kernel, has_relu=True))
    assert [node.op_type for node in rewritten.graph.node] == ["Conv", "Relu", "DepthToSpace"]


def test_relu_stays_where_the_unclipped_values_are_an_output_too(make_upsampler, run_onnx):
    model = make_upsampler((2, 3), (4, 4), 2, has_relu=True, outputs=("up", "y"))
    x = np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype(np.float32)
    for before, after in zip(
        run_onnx(model, x=x), run_onnx(upsample_to_subpixel(model), x=x), strict=True
    ):
        np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3])
def test_floor_of_a_padded_relu_head_moves_in_front_of_the_shuffle(
    kernel, make_upsampler, run_onnx
):
    padded = pad_classes(make_upsampler((2, 3), (4, 4), kernel, has_relu=True), multiple=8)
    rewritten = upsample_to_subpixel(padded)
    x = np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype(np.float32)
    assert [node.op_type for node in rewritten.graph.node] == ["Conv", "Max", "DepthToSpace"]
    np.testing.assert_allclose(run_onnx(rewritten, x=x)[0], run_onnx(padded, x=x)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("last_only", "num_left"), [pytest.param(True, 1, id="last"), pytest.param(False, 0, id="all")]
)
def test_last_only_leaves_the_earlier_ones(last_only, num_left, make_model):
    names = ["x", "middle", "y"]
    weight = np.ones((1, 1, 2, 2), np.float32)
    model = make_model(
        [
            helper.make_node("ConvTranspose", [x, f"{y}.w"], [y], name=y, strides=[2, 2])
            for x, y in pairwise(names)
        ],
        inputs={"x": ["N", 1, 2, 2]},
        outputs={"y": ["N", 1, 8, 8]},
        constants={"middle.w": weight, "y.w": weight},
    )
    rewritten = upsample_to_subpixel(model, last_only=last_only).graph.node
    assert op_counts(rewritten).get("ConvTranspose", 0) == num_left
    assert rewritten[-1].op_type == "DepthToSpace"


@pytest.mark.parametrize(
    ("weight_shape", "attributes"),
    [
        pytest.param((1, 1, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, id="kernel-4"),
        pytest.param((1, 1, 2, 2), {"strides": [1, 1]}, id="stride-1"),
        pytest.param(
            (1, 1, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, id="no-output-padding"
        ),
        pytest.param((1, 1, 2, 2), {"strides": [2, 2], "dilations": [2, 2]}, id="dilated"),
        pytest.param((2, 1, 2, 2), {"strides": [2, 2], "group": 2}, id="grouped"),
    ],
)
def test_other_geometry_is_refused_with_its_figures(weight_shape, attributes, make_model):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="decoder.up", **attributes)
    model = make_model(
        [node],
        inputs={"x": ["N", weight_shape[0], 4, 4]},
        outputs={"y": ["N", "C", "H", "W"]},
        constants={"w": np.ones(weight_shape, np.float32)},
    )
    with pytest.raises(
        GraphError, match=r"ConvTranspose 'decoder\.up' is neither kernel 2 .* = \(\("
    ):
        upsample_to_subpixel(model)
