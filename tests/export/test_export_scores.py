"""8-bit scores of an INT8 head: which class wins, padding classes, and the range table."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.errors import GraphError
from export.graph.editor import op_counts
from export.graph.head import append_labels
from export.graph.qdq import CPU_SCHEME, insert_qdq, range_of
from export.graph.scores import (
    SCORES,
    find_scores,
    quantize_scores,
    score_bounds,
    trim_padding,
)
from export.plan import UPSAMPLES, ExportPlan, graph_from_network
from export.quantization.calibration import measure_ranges
from runtime.artefact.card import CONFIDENCE, LABELS, LOGITS

SIZE_HW = (4, 6)


def int8_head(num_classes: int, *, is_shuffled: bool, scale: float, bias: np.ndarray):
    """Make ``levels`` (uint8) -> DequantizeLinear -> 1x1 Conv that adds a bias -> labels."""
    channels = len(bias)
    height, width = (side // 2 if is_shuffled else side for side in SIZE_HW)
    constants = {
        "scale": np.float32(scale),
        "zero": np.uint8(0),
        "w": np.eye(channels, dtype=np.float32)[:, :, None, None],
        "b": bias.astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["x"], name="dequantize"),
        helper.make_node("Conv", ["x", "w", "b"], ["up" if is_shuffled else "logits"], name="head"),
    ]
    if is_shuffled:
        nodes.append(
            helper.make_node("DepthToSpace", ["up"], ["logits"], name="shuffle", blocksize=2)
        )
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info(
                "levels", TensorProto.UINT8, ["N", channels, height, width]
            )
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", num_classes, *SIZE_HW])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    num_classes=st.integers(1, 12),
    is_shuffled=st.booleans(),
    scale=st.sampled_from([1e-3, 0.02, 0.1, 3.0]),
    offset=st.sampled_from([-300.0, -5.0, 0.0, 5.0, 300.0]),
    has_padding=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_only_a_class_within_one_scale_of_the_best_can_win(
    num_classes, is_shuffled, scale, offset, has_padding, seed, run_onnx
):
    random = np.random.default_rng(seed)
    groups = 4 if is_shuffled else 1
    bias = offset + random.normal(0, 10 * scale, (groups, num_classes))
    if has_padding:
        bias[:, -1] = -1e4
    model = int8_head(num_classes, is_shuffled=is_shuffled, scale=scale, bias=bias.ravel())
    sides = [side // 2 if is_shuffled else side for side in SIZE_HW]
    levels = random.integers(0, 256, (3, groups * num_classes, *sides), np.uint8)
    [logits] = run_onnx(model, levels=levels)
    labelled = quantize_scores(append_labels(model), score_bounds(logits, 1))
    [labels] = run_onnx(labelled, levels=levels)
    step = next(
        numpy_helper.to_array(tensor).item()
        for tensor in labelled.graph.initializer
        if tensor.name == f"{SCORES}/scale"
    )
    chosen = np.take_along_axis(logits, labels[:, None].astype(np.int64), 1)[:, 0]
    assert (logits.max(1) - chosen).max() <= step * 1.001


def test_scores_far_below_the_best_are_clipped_and_cost_no_resolution(run_onnx):
    bias = np.array([0.0, 0.5, -5000.0])
    model = int8_head(3, is_shuffled=False, scale=0.01, bias=bias)
    levels = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE_HW), np.uint8)
    [logits] = run_onnx(model, levels=levels)
    low, high = score_bounds(logits, 1)
    assert high - low < 5
    [labels] = run_onnx(quantize_scores(append_labels(model), (low, high)), levels=levels)
    assert (labels == logits.argmax(1)).mean() > 0.9


def test_bounds_are_the_smallest_top_score_and_the_largest_runner_up():
    scores = np.array([[1.0, 9.0, 4.0], [2.0, 2.0, -7.0]], np.float32)
    assert score_bounds(scores, 1) == (2.0, 4.0)
    assert score_bounds(scores[:, :1], 1) == (1.0, 1.0)


@pytest.fixture(scope="module")
def quantize_graph(frames):
    """Quantize a float graph with the cpu scheme, its scores included."""

    def quantize(model: onnx.ModelProto, **settings_of) -> onnx.ModelProto:
        ranges, _, _ = measure_ranges(model, [frames[:1]], "max")
        quantized = insert_qdq(model, ranges, CPU_SCHEME, **settings_of)
        return quantize_scores(quantized, range_of(SCORES, ranges))

    return quantize


@pytest.mark.parametrize("family", ["authors", "zh320"])
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_the_argmax_of_every_form_reads_bytes(family, upsample, make_graph, quantize_graph):
    quantized = quantize_graph(make_graph(family, optimized_for="openvino", upsample=upsample))
    graph = onnx.shape_inference.infer_shapes(quantized, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    name, _ = find_scores(quantized)
    assert types[name] == TensorProto.UINT8


@pytest.mark.parametrize(
    ("outputs", "keep"),
    [
        pytest.param((LABELS, CONFIDENCE), (), id="confidence"),
        pytest.param((LABELS,), ("decoder.output_conv",), id="float head"),
    ],
)
def test_scores_that_are_needed_in_float_stay_float(outputs, keep, make_graph, quantize_graph):
    quantized = quantize_graph(make_graph(optimized_for="openvino", outputs=outputs), keep=keep)
    assert SCORES not in [node.name for node in quantized.graph.node]


@pytest.mark.parametrize("family", ["authors", "zh320"])
@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize(("width", "expected"), [(12, 12), (40, 17)], ids=["fewer", "enough"])
def test_trimmed_padding_changes_no_label(
    family, upsample, width, expected, make_graph, run_onnx, frames
):
    model = make_graph(family, optimized_for="openvino", upsample=upsample)
    trimmed = trim_padding(model, width)
    assert op_counts(trimmed.graph.node) == op_counts(model.graph.node)
    watched = onnx.ModelProto()
    watched.CopyFrom(trimmed)
    name, axis = find_scores(trimmed)
    scores = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (axis + 3))
    watched.graph.output.append(scores)
    labels, scores = run_onnx(watched, frames=frames)
    assert scores.shape[axis] == expected
    np.testing.assert_array_equal(labels, run_onnx(model, frames=frames)[0])


def test_a_head_of_another_structure_is_refused(make_model):
    model = make_model(
        [helper.make_node("Neg", ["x"], ["logits"], name="neg")],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"logits": [1, 3, 4, 4]},
    )
    with pytest.raises(GraphError, match="does not read the scores of a convolution"):
        trim_padding(append_labels(model), 2)


@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_the_bounds_are_the_same_in_every_form(upsample, make_graph, make_network, frames):
    tables = [
        measure_ranges(graph, [frames[:1]], "mse")[0]
        for graph in (make_graph(upsample=upsample), make_graph(optimized_for="onnxruntime"))
    ]
    assert tables[0][SCORES] == pytest.approx(tables[1][SCORES], rel=1e-4)
    logits_plan = ExportPlan(size_hw=frames.shape[1:3], outputs=(LOGITS,))
    logits_graph = graph_from_network(make_network("authors"), logits_plan)
    assert SCORES not in measure_ranges(logits_graph, [frames[:1]], "max")[0]
