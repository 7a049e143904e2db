"""``GraphEditor``: queries, errors, and the result of ``finish``."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from export.errors import GraphError
from export.graph.editor import GraphEditor, attributes, dims_of, op_counts, opset_of


def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"make_{output}", **attributes)


@pytest.fixture
def model(make_model) -> onnx.ModelProto:
    """``x -> a -> (b, c) -> y``, where b and c share a constant."""
    return make_model(
        [
            node("Relu", ["x"], "a"),
            node("Mul", ["a", "k"], "b"),
            node("Add", ["a", "k"], "c"),
            node("Sub", ["b", "c"], "y"),
        ],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        constants={"k": np.float32([1, 2])},
    )


@pytest.fixture
def editor(model) -> GraphEditor:
    return GraphEditor(model)


def test_edits_leave_the_model_alone(model):
    before = model.SerializeToString()
    editor = GraphEditor(model)
    editor.set_array("k", np.float32([3, 4]))
    editor.rewire("b", "c")
    editor.single_output().name = "c"
    editor.finish()
    assert model.SerializeToString() == before


def test_finish_drops_nodes_and_constants_that_no_output_needs(editor):
    editor.rewire("b", "a")
    editor.rewire("c", "a")
    result = editor.finish()
    assert op_counts(result.graph.node) == {"Relu": 1, "Sub": 1}
    assert not result.graph.initializer


def test_finish_sorts_nodes_that_were_added_late(editor, run_onnx):
    editor.rewire("a", editor.add("Neg", "negate", ["a"]))
    [y] = run_onnx(editor.finish(), x=np.float32([[5, 7]]))
    np.testing.assert_array_equal(y, [[-1, -9]])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda editor: editor.remove(editor.producer("c")), id="missing-tensor"),
        pytest.param(lambda editor: editor.rewire("a", "y"), id="cycle"),
    ],
)
def test_finish_refuses_a_broken_graph(spoil, editor):
    spoil(editor)
    with pytest.raises(onnx.checker.ValidationError):
        editor.finish()


def test_producer_of_inputs_and_constants_is_none(editor):
    assert editor.producer("x") is editor.producer("k") is None


def test_consumers_are_all_nodes_that_read_a_tensor(editor):
    assert [reader.name for reader in editor.consumers("a")] == ["make_b", "make_c"]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        pytest.param("b", "make_y", id="one-reader"),
        pytest.param("a", None, id="two-readers"),
        pytest.param("y", None, id="graph-output"),
    ],
)
def test_sole_reader_is_the_one_that_alone_sees_a_tensor(tensor, expected, editor):
    reader = editor.sole_reader(tensor)
    assert (reader.name if reader is not None else None) == expected


def test_constant_of_one_node_changes_for_that_node_alone(editor, run_onnx):
    editor.set_node_array(editor.producer("b"), 1, "k", np.float32([10, 10]))
    [y] = run_onnx(editor.finish(), x=np.float32([[1, 1]]))
    np.testing.assert_array_equal(y, [[8, 7]])


def test_what_is_added_under_a_taken_name_gets_another(editor, run_onnx):
    k = editor.add_array("k", np.float32([10, 10]))
    first = editor.add("Add", "make_b", ["b", k])
    second = editor.add("Add", "make_b", [first, k])
    editor.rewire("c", second)
    [y] = run_onnx(editor.finish(), x=np.float32([[5, 7]]))
    np.testing.assert_array_equal(y, [[-20, -20]])


def test_rename_reaches_maker_and_readers(editor, run_onnx):
    editor.rename("a", "renamed")
    assert editor.producer("renamed").name == "make_a"
    [y] = run_onnx(editor.finish(), x=np.float32([[5, 7]]))
    np.testing.assert_array_equal(y, [[-1, 5]])


def test_computed_tensor_is_no_constant(editor):
    with pytest.raises(
        GraphError, match="'a' must be a constant of the graph, but a node computes it"
    ):
        editor.array("a")


@pytest.mark.parametrize(
    ("get", "message"),
    [
        pytest.param(
            GraphEditor.single_input, r"must have one input, got 2: \['x', 'z'\]", id="input"
        ),
        pytest.param(
            GraphEditor.single_output, r"must have one output, got 2: \['y', 'z'\]", id="output"
        ),
    ],
)
def test_graph_with_several_edges_is_refused_with_their_names(get, message, editor):
    for values in (editor.graph.input, editor.graph.output):
        values.add().CopyFrom(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(GraphError, match=message):
        get(editor)


def test_constant_listed_among_the_inputs_is_no_input(editor):
    listed = helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [2])
    editor.graph.input.add().CopyFrom(listed)
    assert editor.single_input().name == "x"


@pytest.mark.parametrize(
    ("name", "default", "expected"),
    [
        pytest.param("axis", 0, 3, id="set"),
        pytest.param("keepdims", 1, 1, id="not-set"),
    ],
)
def test_attribute_is_the_nodes_or_the_default(name, default, expected):
    assert attributes(node("ArgMax", ["x"], "y", axis=3)).get(name, default) == expected


def test_unnamed_axis_is_shown_as_a_question_mark():
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, None])
    assert dims_of(value) == ["N", 3, "?"]


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        pytest.param({"": 17, "ai.onnx.ml": 3}, 17, id="default-domain"),
        pytest.param({"ai.onnx": 13}, 13, id="default-domain-by-name"),
        pytest.param({"ai.onnx.ml": 3}, 0, id="other-domains-only"),
    ],
)
def test_opset_is_the_default_domains(domains, expected):
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    assert opset_of(onnx.ModelProto(opset_import=opsets)) == expected
