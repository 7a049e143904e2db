"""The precision contract: shares of the multiply-accumulates in each type, and INT8 on TensorRT 8.6."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from esnet.labels import CAMVID
from export.engine.build import EngineReport, build_engine
from export.engine.kernels import Edge, Kernel, kernels_from_inspector
from export.engine.precision import convolution_macs, fallback_note, mac_shares
from export.engine.trt_builder import BuildOptions
from export.errors import BuildError, PrecisionError
from export.graph.qdq import TENSORRT_SCHEME, insert_qdq, quantizable_tensors
from export.metadata import card_from_plan, with_card
from export.plan import ExportPlan
from export.report import text_from_engine
from runtime.artefact.engine_file import read_record
from tests.conftest import SMALL_HW
from tests.fake_trt import GENERATIONS, fake_tensorrt

PASCAL = ("NVIDIA GeForce GTX 1080 Ti", (6, 1))


def conv(name: str, type_name: str, *, metadata: str = "", kind: str = "CaskConvolution") -> Kernel:
    return Kernel(kind, name, (Edge(type_name, 8),), (Edge(type_name, 8),), "", metadata)


MACS = {"encoder.a": 60, "encoder.a.b": 30, "decoder.c": 10}


@pytest.mark.parametrize(
    ("kernels", "shares"),
    [
        pytest.param([], {}, id="none"),
        pytest.param([conv("__myl_1", "Int8")], {}, id="nameless"),
        pytest.param(
            [conv("encoder.a", "Int8"), conv("encoder.a.b", "Float"), conv("decoder.c", "Float")],
            {"Int8": 0.6, "Float": 0.4},
            id="plain",
        ),
        pytest.param(
            [conv("encoder.a.b.weight + q + encoder.a.b + PWN(decoder.relu)", "Int8")],
            {"?": 0.7, "Int8": 0.3},
            id="fused",
        ),
        pytest.param(
            [conv("__mye1_myl0_2", "Half", metadata="[ONNX Layer: encoder.a][ONNX Layer: relu]")],
            {"Half": 0.6, "?": 0.4},
            id="metadata",
        ),
        pytest.param(
            [conv("{ForeignNode[encoder.a...decoder.c]}", "Float", kind="Myelin")],
            {},
            id="no-convolution-by-name",
        ),
        pytest.param(
            [conv("encoder.a", "Int8"), conv("encoder.a", "Float")],
            {"Int8": 0.6, "?": 0.4},
            id="two-kernels",
        ),
    ],
)
def test_shares_are_those_of_the_nodes_that_kernels_name(kernels, shares):
    assert mac_shares(kernels, MACS) == pytest.approx(shares)


def test_multiply_accumulates_are_counted_by_hand(make_model):
    model = make_model(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], "conv", strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("ConvTranspose", ["y", "v"], ["z"], "up", strides=[2, 2]),
        ],
        inputs={"x": ["N", 3, 8, 16]},
        outputs={"z": ["N", 5, 8, 16]},
        constants={"w": np.zeros((4, 3, 3, 3), "f"), "v": np.zeros((4, 5, 2, 2), "f")},
    )
    assert convolution_macs(model) == {"conv": 4 * 3 * 9 * 4 * 8, "up": 4 * 5 * 4 * 4 * 8}


def test_quantization_changes_no_count(make_graph):
    model = make_graph()
    assert convolution_macs(quantized(model)) == convolution_macs(model)


def test_the_largest_convolutions_are_named_first():
    kernels = [conv("encoder.a", "Float"), conv("encoder.a.b", "Int8"), conv("decoder.c", "Half")]
    note = fallback_note(kernels, MACS, "int8")
    assert note.startswith("70.0 % of the multiply-accumulates are not in int8")
    assert note.endswith("encoder.a Float 60.0 %, decoder.c Half 10.0 %")
    assert fallback_note([conv("encoder.a", "Int8")], MACS, "int8") is None


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    ranges = dict.fromkeys(quantizable_tensors(model), (-1.0, 1.0))
    return insert_qdq(model, ranges, TENSORRT_SCHEME)


@pytest.fixture
def int8_artefact(make_graph, tmp_path) -> Path:
    path = tmp_path / "small_int8.onnx"
    card = card_from_plan(ExportPlan(size_hw=SMALL_HW), CAMVID, name="small")
    onnx.save(with_card(quantized(make_graph()), replace(card, precision="int8")), path)
    return path


@pytest.fixture
def build(monkeypatch, int8_artefact):
    """Build an INT8 engine on a GPU that lacks the kernels of some nodes."""

    def run(generation: str, has_kernel=lambda node: True, error=None) -> EngineReport:
        module = fake_tensorrt(generation, sm=PASCAL[1])
        module.state.has_int8_kernel, module.state.build_error = has_kernel, error
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        gpu = PASCAL if generation.startswith("8.") else ("NVIDIA GeForce RTX 3060", (8, 6))
        monkeypatch.setattr("export.engine.build.cuda_gpu", lambda *_: gpu)
        module.state.sm = gpu[1]
        options = BuildOptions(precision="int8", tensorrt="tensorrt")
        return build_engine(int8_artefact, None, options, command=["esnet-export"])

    return run


def is_dense(node: onnx.NodeProto) -> bool:
    """Check for a convolution that is neither dilated nor transposed."""
    dilations = [a.ints for a in node.attribute if a.name == "dilations"]
    return node.op_type == "Conv" and max(*(dilations or [[1, 1]])[0]) == 1


def test_8_6_reports_what_it_computes_in_fp32(build, int8_artefact):
    report = build("8.6.1", is_dense)
    macs = convolution_macs(onnx.load(int8_artefact))
    nodes = {node.name: node for node in onnx.load(int8_artefact).graph.node}
    dense = sum(count for name, count in macs.items() if is_dense(nodes[name]))
    share = dense / sum(macs.values())
    record = read_record(report.path)
    assert record.precision["mac_shares"] == pytest.approx({"Int8": share, "Float": 1 - share})
    assert 0.5 < share < 0.8
    (note,) = (note for note in report.notes if "multiply-accumulates" in note)
    assert note.startswith(f"{100 * (1 - share):.1f} % of the multiply-accumulates are not in int8")
    assert note.endswith(" and 17 more")
    text = " ".join(text_from_engine(report).split())
    found = f"multiply-accumulates: {100 * share:.1f} % Int8, {100 * (1 - share):.1f} % Float"
    assert found in text


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_engine_without_any_int8_is_an_error(build, int8_artefact, generation):
    with pytest.raises(PrecisionError, match="int8 was requested, but of 66 convolutions 66 in"):
        build(generation, lambda node: False)
    assert list(int8_artefact.parent.glob("*.engine*")) == []


@pytest.mark.parametrize("generation", GENERATIONS[1:])
def test_newer_versions_must_keep_to_the_types_of_the_graph(build, generation):
    with pytest.raises(PrecisionError, match="int8 was requested"):
        build(generation, is_dense)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_engine_wholly_in_int8_has_no_note(build, generation):
    report = build(generation)
    assert report.record.precision["mac_shares"] == {"Int8": 1.0}
    assert [note for note in report.notes if "multiply-accumulates" in note] == []


def test_a_node_that_has_no_int8_kernel_at_all_is_named_with_the_way_out(build):
    """TensorRT 8.6 may stop at a quantized node instead of computing it in FP32."""
    node = "decoder.layers.0.conv.weight + quantize + decoder.layers.0.conv"
    reason = f"Error Code 10: Internal Error (Could not find any implementation for node {node}.)"
    with pytest.raises(BuildError, match="Could not find any implementation") as caught:
        build("8.6.1", error=reason)
    assert "esnet-export quantize" in caught.value.hint
    assert "--keep" in caught.value.hint


def test_the_names_of_a_real_inspector_are_read():
    """Layer of TensorRT 8.6 with quantized weights."""
    layers = """{"Layers": [{"Name": "encoder.a.weight + encoder.a.q + encoder.a + encoder.a.relu",
        "LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 9},
        "Inputs": [{"Dimensions": [1, 4, 8, 8], "Format/Datatype": "Four wide INT8"}],
        "Outputs": [], "Metadata": "[ONNX Layer: decoder.c]"}]}"""
    kernels = kernels_from_inspector(layers)
    assert mac_shares(kernels, MACS) == pytest.approx({"Int8": 0.7, "?": 0.3})
