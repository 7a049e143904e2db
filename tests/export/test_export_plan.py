"""Every export plan gives a graph that follows the deployment rules and labels frames as torch does."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from esnet.families import FAMILIES, IMAGENET_MEAN, IMAGENET_STD
from export.errors import ExportError
from export.graph.editor import dims_of, op_counts
from export.graph_builder import onnx_from_network
from export.plan import FORMS, OPSETS, UPSAMPLES, ExportPlan
from runtime.artefact.card import CONFIDENCE, LABELS, LOGITS, BatchRange

BOTH = (LABELS, CONFIDENCE)

each_family = pytest.mark.parametrize("family", FAMILIES)
each_target = pytest.mark.parametrize("optimized_for", FORMS)
each_upsample = pytest.mark.parametrize("upsample", UPSAMPLES)


@each_family
def test_published_graph_scores_as_torch_does(family, make_network, run_onnx, torch_logits, frames):
    model = onnx_from_network(make_network(family), (64, 128), BatchRange(1, 1, 8), opset=17)
    [logits] = run_onnx(model, tensor=(frames / np.float32(255)).transpose(0, 3, 1, 2))
    expected = torch_logits(family)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@each_family
def test_published_graph_carries_no_size_arithmetic(family, make_network):
    model = onnx_from_network(make_network(family), (64, 128), BatchRange(1, 1, 8), opset=17)
    expected = {"Add", "BatchNormalization", "Concat", "Conv", "ConvTranspose", "MaxPool", "Relu"}
    assert set(op_counts(model.graph.node)) == expected


@each_family
@each_target
@each_upsample
def test_labels_are_torchs_argmax_up_to_the_borders(
    family, optimized_for, upsample, make_graph, run_onnx, torch_logits, frames, assert_same_labels
):
    normalisation = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    model = make_graph(family, optimized_for=optimized_for, upsample=upsample, **normalisation)
    [labels] = run_onnx(model, frames=frames)
    assert_same_labels(labels, torch_logits(family, **normalisation))


@each_family
@each_upsample
def test_every_form_gives_the_same_logits(
    family, upsample, make_graph, run_onnx, torch_logits, frames
):
    model = make_graph(family, upsample=upsample, outputs=(LOGITS,))
    [logits] = run_onnx(model, frames=frames)
    expected = torch_logits(family)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@each_family
@each_target
def test_confidence_is_the_real_classes_probability(
    family, optimized_for, make_graph, run_onnx, torch_logits, frames
):
    _, confidence = run_onnx(
        make_graph(family, optimized_for=optimized_for, outputs=BOTH), frames=frames
    )
    logits = torch_logits(family)
    probability = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    assert np.abs(confidence - 255 * probability).max() < 0.6


@each_family
@each_target
def test_nothing_is_left_that_can_be_folded_away(family, optimized_for, make_graph):
    ops = op_counts(make_graph(family, optimized_for=optimized_for, outputs=BOTH).graph.node)
    assert not ops.keys() & {
        "BatchNormalization",
        "Constant",
        "Dropout",
        "Identity",
        "Pad",
        "Shape",
        "Slice",
    }


@each_family
@each_target
def test_every_relu_stands_behind_what_it_can_fuse_with(family, optimized_for, make_graph):
    nodes = make_graph(family, optimized_for=optimized_for).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    read = {makers[node.input[0]] for node in nodes if node.op_type == "Relu"}
    assert read <= {"Conv", "ConvTranspose", "Add"}


@each_family
@each_target
def test_nothing_but_casts_touches_bytes(family, optimized_for, make_graph):
    model = make_graph(family, optimized_for=optimized_for, outputs=BOTH, mean=IMAGENET_MEAN)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    is_byte = {v.name: v.type.tensor_type.elem_type == TensorProto.UINT8 for v in values}
    touching = {
        node.op_type
        for node in graph.node
        if any(is_byte.get(name, False) for name in (*node.input, *node.output))
    }
    assert touching == {"Cast"}


@each_family
@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        pytest.param((0.0, 0.0, 0.0), ["Cast", "Transpose"], id="no-mean"),
        pytest.param(IMAGENET_MEAN, ["Cast", "Sub", "Transpose"], id="mean"),
    ],
)
def test_input_is_cast_before_it_is_transposed(family, mean, expected, make_graph):
    nodes = make_graph(family, mean=mean).graph.node
    assert [node.op_type for node in nodes[: len(expected)]] == expected
    assert nodes[0].input == ["frames"]


def test_tensor_input_and_logits_output_give_the_classic_graph(make_graph):
    graph = make_graph(input="tensor", outputs=(LOGITS,)).graph
    assert dims_of(graph.input[0]) == ["N", 3, 64, 128]
    assert dims_of(graph.output[0]) == ["N", 11, 64, 128]
    edges = (*graph.input, *graph.output)
    assert {value.type.tensor_type.elem_type for value in edges} == {TensorProto.FLOAT}


def test_default_opset_and_ir_are_those_tensorrt_8_6_reads(make_graph):
    model = make_graph()
    assert ([entry.version for entry in model.opset_import], model.ir_version) == ([17], 8)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_passes_the_checker_and_runs(opset, make_graph, run_onnx, frames):
    # This family in this form has every operator that an artefact can have.
    make = partial(make_graph, "zh320", optimized_for="openvino", outputs=BOTH)
    default, model = make(), make(opset=opset)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset
    for got, expected in zip(
        run_onnx(model, frames=frames), run_onnx(default, frames=frames), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@each_family
@each_target
def test_frames_of_a_batch_are_labelled_as_on_their_own(
    family, optimized_for, make_graph, run_onnx, frames
):
    model = make_graph(family, optimized_for=optimized_for)
    alone = [run_onnx(model, frames=frame[None])[0][0] for frame in frames]
    for batch in (np.arange(1), np.arange(3), np.arange(8) % 3):
        [labels] = run_onnx(model, frames=frames[batch])
        assert (labels == np.stack([alone[index] for index in batch])).mean() > 0.9999


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        pytest.param(BatchRange(1, 1, 8), "N", id="range"),
        pytest.param(BatchRange(4, 4, 4), 4, id="fixed"),
    ],
)
def test_batch_axis_is_open_for_a_range_and_fixed_for_a_number(batch, expected, make_graph):
    graph = make_graph(batch=batch, outputs=BOTH).graph
    assert {dims_of(value)[0] for value in (*graph.input, *graph.output)} == {expected}


@pytest.mark.parametrize(
    ("optimized_for", "num_classes", "expected"),
    [
        pytest.param("tensorrt", 11, 16, id="tensorrt-pads-11"),
        pytest.param("tensorrt", 8, 8, id="tensorrt-leaves-8"),
        pytest.param("tensorrt", 20, 24, id="tensorrt-pads-20"),
        pytest.param("onnxruntime", 11, 11, id="onnxruntime-leaves-11"),
    ],
)
def test_head_is_as_wide_as_the_target_likes_it(optimized_for, num_classes, expected, make_graph):
    graph = make_graph(
        num_classes=num_classes, optimized_for=optimized_for, upsample="transpose"
    ).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    assert weights["decoder.output_conv.weight"][1] == expected


@pytest.mark.parametrize("num_classes", [8, 20])
@each_target
def test_other_numbers_of_classes_are_labelled_as_in_torch(
    num_classes,
    optimized_for,
    make_graph,
    make_network,
    run_onnx,
    torch_logits,
    frames,
    assert_same_labels,
):
    [labels] = run_onnx(
        make_graph(num_classes=num_classes, optimized_for=optimized_for), frames=frames
    )
    assert_same_labels(labels, torch_logits(num_classes=num_classes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"optimized_for": "tpu"}, "optimized_for 'tpu' is not one of", id="optimized_for"
        ),
        pytest.param({"upsample": "nearest"}, "upsample 'nearest' is not one of", id="upsample"),
        pytest.param({"input": "video"}, "input 'video' is not one of", id="input"),
        pytest.param({"outputs": (CONFIDENCE,)}, "output .* is not one of", id="outputs"),
        pytest.param({"precision": "int4"}, "precision 'int4' is not one of", id="precision"),
        pytest.param({"opset": 12}, "opset 12 is out of range, 13 to 21", id="old-opset"),
        pytest.param({"opset": 22}, "opset 22 is out of range, 13 to 21", id="new-opset"),
        pytest.param({"size_hw": (64, 100)}, "must be multiples of 8", id="size"),
        pytest.param({"size_hw": (0, 64)}, "must be multiples of 8", id="no-height"),
        pytest.param({"batch": BatchRange(0, 1, 1)}, "is out of order", id="empty-batch"),
        pytest.param({"batch": BatchRange(1, 8, 4)}, "is out of order", id="falling-batch"),
        pytest.param({"std": (0.2, 0.0, 0.2)}, "on the 0-1 scale, std above 0", id="std-of-zero"),
        pytest.param({"std": (58.0, 57.0, 57.0)}, "on the 0-1 scale", id="std-of-bytes"),
        pytest.param({"mean": (123.0, 116.0, 103.0)}, "on the 0-1 scale", id="mean-of-bytes"),
        pytest.param({"mean": (float("nan"), 0.0, 0.0)}, "on the 0-1 scale", id="mean-nan"),
        pytest.param({"std": (float("nan"), 1.0, 1.0)}, "on the 0-1 scale", id="std-nan"),
    ],
)
def test_plan_refuses_what_cannot_be_written(settings, message):
    with pytest.raises(ExportError, match=message):
        ExportPlan(**settings)
