"""Folding BN changes no output, wherever the BN is in the graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from export.errors import GraphError
from export.graph.batchnorm import fold_batchnorm
from export.graph.editor import op_counts

SIZE_HW = (5, 6)


class Drawing:
    """Random graph builder: every node keeps height and width, and all values come from one seed."""

    def __init__(self, seed: int, in_channels: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.channels = {"x": in_channels}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, op: str, inputs: list[str], channels: int, **attributes: object) -> str:
        name = f"{op.lower()}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}/out"], name=name, **attributes))
        self.channels[f"{name}/out"] = channels
        return f"{name}/out"

    def constant(self, name: str, *shape: int, low: float = -1, high: float = 1) -> str:
        self.constants[name] = self.random.uniform(low, high, shape).astype(np.float32)
        return name

    def conv(self, x: str, channels: int, *, has_bias: bool = True, op: str = "Conv") -> str:
        first, second = channels, self.channels[x]
        if op == "ConvTranspose":
            first, second = second, first
        label = f"c{len(self.nodes)}"
        inputs = [x, self.constant(f"{label}.weight", first, second, 3, 3)]
        if has_bias:
            inputs.append(self.constant(f"{label}.bias", channels))
        return self.add(op, inputs, channels, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def norm(self, x: str, *, statistics: str | None = None) -> str:
        label, channels = statistics or f"bn{len(self.nodes)}", self.channels[x]
        if f"{label}.scale" not in self.constants:
            for name, low, high in (
                ("scale", -1, 1),
                ("shift", -1, 1),
                ("mean", -1, 1),
                ("var", 0.3, 2),
            ):
                self.constant(f"{label}.{name}", channels, low=low, high=high)
        inputs = [x, *(f"{label}.{name}" for name in ("scale", "shift", "mean", "var"))]
        return self.add("BatchNormalization", inputs, channels, epsilon=1e-3)

    def pool(self, x: str) -> str:
        return self.add("MaxPool", [x], self.channels[x], kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def concat(self, *parts: str) -> str:
        return self.add("Concat", list(parts), sum(self.channels[part] for part in parts), axis=1)

    def relu(self, x: str) -> str:
        return self.add("Relu", [x], self.channels[x])


STEPS = (
    lambda graph, x, other: graph.conv(x, 2),
    lambda graph, x, other: graph.conv(x, 2, has_bias=False),
    lambda graph, x, other: graph.conv(x, 2, op="ConvTranspose"),
    lambda graph, x, other: graph.norm(x),
    lambda graph, x, other: graph.norm(x),
    lambda graph, x, other: graph.concat(x, other),
    lambda graph, x, other: graph.pool(x),
    lambda graph, x, other: graph.relu(x),
)


@st.composite
def drawings(draw: st.DrawFn) -> tuple[Drawing, list[str]]:
    """Strategy for random graphs of up to ten nodes, with the tensors that are their outputs."""
    graph = Drawing(draw(st.integers(0, 1000)))
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=10)):
        x, other = (draw(st.sampled_from(list(graph.channels)[-3:])) for _ in range(2))
        step(graph, x, other)
    made = list(graph.channels)[1:]
    return graph, sorted({made[-1], draw(st.sampled_from(made))})


@pytest.fixture(scope="session")
def assert_folds(make_model, run_onnx):
    """Fold a random graph, assert equal outputs and no BN, and return the folded graph."""

    def check(graph: Drawing, *outputs: str) -> onnx.ModelProto:
        def shape(name: str) -> list[int | str]:
            return ["N", graph.channels[name], *SIZE_HW]

        model = make_model(
            graph.nodes,
            inputs={"x": shape("x")},
            outputs={name: shape(name) for name in outputs},
            constants=graph.constants,
        )
        folded = fold_batchnorm(model)
        assert "BatchNormalization" not in op_counts(folded.graph.node)
        x = graph.random.uniform(-1, 1, (2, graph.channels["x"], *SIZE_HW)).astype(np.float32)
        for before, after in zip(run_onnx(model, x=x), run_onnx(folded, x=x), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-5 * max(1, np.abs(before).max()))
        return folded

    return check


@settings(max_examples=150, deadline=None, derandomize=True)
@given(drawing=drawings())
def test_folding_changes_no_output_of_any_graph(drawing, assert_folds):
    graph, outputs = drawing
    assert_folds(graph, *outputs)


def test_bn_behind_a_concat_folds_into_the_conv_and_becomes_an_affine_on_the_pool(assert_folds):
    graph = Drawing(0)
    joined = graph.concat(graph.conv("x", 4), graph.pool("x"))
    folded = assert_folds(graph, graph.relu(graph.norm(joined)))
    assert (graph.constants["bn3.scale"][4:] < 0).any(), "the pool half needs a negative scale"
    assert op_counts(folded.graph.node) == {
        "Relu": 2,
        "Add": 1,
        "Concat": 1,
        "Conv": 1,
        "MaxPool": 1,
        "Mul": 1,
    }


def test_relu_stays_behind_a_concat_that_others_read_too(assert_folds):
    graph = Drawing(0)
    joined = graph.concat("x", graph.conv("x", 4))
    folded = assert_folds(graph, graph.relu(joined), graph.pool(joined))
    assert op_counts(folded.graph.node)["Relu"] == 1


def test_relu_moves_to_each_part_of_a_concat_also_to_the_same_part_twice(assert_folds):
    graph = Drawing(0)
    folded = assert_folds(graph, graph.relu(graph.concat(*[graph.conv("x", 4)] * 2)))
    assert op_counts(folded.graph.node) == {"Relu": 2, "Concat": 1, "Conv": 1}


def test_parts_of_a_concat_whose_names_end_alike_get_affines_of_their_own(assert_folds):
    graph = Drawing(0)
    parts = [graph.conv("x", 2), graph.conv("x", 2)]
    for node, block in zip(graph.nodes, "ab", strict=True):
        node.name = f"{block}.conv"
    assert_folds(graph, *parts, graph.norm(graph.concat(*parts)))


def test_bn_shared_by_three_branches_folds_into_each(assert_folds):
    graph = Drawing(1)
    branches = [graph.norm(graph.conv("x", 4), statistics="bn2") for _ in range(3)]
    total = graph.add("Add", branches[:2], 4)
    folded = assert_folds(graph, graph.add("Add", [total, branches[2]], 4))
    assert op_counts(folded.graph.node) == {"Conv": 3, "Add": 2}


def test_weights_shared_with_a_conv_without_bn_stay_for_that_one(assert_folds):
    graph = Drawing(2)
    plain = graph.conv("x", 4)
    twin = graph.add("Conv", list(graph.nodes[0].input), 4, pads=[1, 1, 1, 1])
    folded = assert_folds(graph, plain, graph.norm(twin))
    assert op_counts(folded.graph.node) == {"Conv": 2}


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        pytest.param(lambda graph: "x", {"Add": 1, "Mul": 1}, id="graph-input"),
        pytest.param(
            lambda graph: graph.relu(graph.conv("x", 2)),
            {"Add": 1, "Conv": 1, "Mul": 1, "Relu": 1},
            id="relu",
        ),
        pytest.param(
            lambda graph: graph.concat(graph.conv("x", 2), graph.conv("x", 3)),
            {"Conv": 2, "Concat": 1},
            id="concat-of-convs",
        ),
        pytest.param(
            lambda graph: graph.concat(*[graph.conv("x", 2)] * 2),
            {"Add": 1, "Concat": 1, "Conv": 1, "Mul": 1},
            id="concat-of-a-conv-with-itself",
        ),
        pytest.param(
            lambda graph: graph.concat(graph.relu("x"), graph.pool("x")),
            {"Add": 1, "Concat": 1, "MaxPool": 1, "Mul": 1, "Relu": 1},
            id="concat-of-unknown-parts",
        ),
        pytest.param(
            lambda graph: graph.add(
                "Conv", ["x", graph.constant("w", 6, 1, 3, 3)], 6, group=3, pads=[1, 1, 1, 1]
            ),
            {"Add": 1, "Conv": 1, "Mul": 1},
            id="grouped-conv",
        ),
    ],
)
def test_bn_takes_as_few_nodes_as_what_it_follows_allows(draw, expected, assert_folds):
    graph = Drawing(3)
    folded = assert_folds(graph, graph.norm(draw(graph)))
    assert op_counts(folded.graph.node) == expected


def test_conv_that_others_read_too_keeps_its_weights(assert_folds):
    graph = Drawing(4)
    conv = graph.conv("x", 2)
    folded = assert_folds(graph, conv, graph.norm(conv))
    assert op_counts(folded.graph.node) == {"Add": 1, "Conv": 1, "Mul": 1}


def test_folded_output_keeps_its_name(assert_folds):
    graph = Drawing(5)
    name = graph.norm(graph.conv("x", 2))
    assert [value.name for value in assert_folds(graph, name).graph.output] == [name]


def test_bn_with_computed_statistics_is_refused(make_model):
    graph = Drawing(6)
    name = graph.norm("x", statistics="bn")
    computed = helper.make_node("Abs", ["raw"], ["bn.var"], name="abs")
    graph.constants["raw"] = graph.constants.pop("bn.var")
    shape = ["N", 3, *SIZE_HW]
    model = make_model(
        [computed, *graph.nodes],
        inputs={"x": shape},
        outputs={name: shape},
        constants=graph.constants,
    )
    with pytest.raises(GraphError, match=r"'bn\.var' must be a constant of the graph"):
        fold_batchnorm(model)
