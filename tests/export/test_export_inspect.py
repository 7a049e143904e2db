"""Description of ONNX files of this and other tools."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from esnet.labels import CAMVID, load_label_set
from export.engine.build import build_engine
from export.engine.inspect import inspect_engine
from export.engine.trt_builder import BuildOptions
from export.inspect import inspect_onnx
from export.report import text_from_inspection, text_of_engine
from runtime.artefact.engine_file import read_record
from runtime.errors import ModelFileError
from tests.fake_trt import fake_tensorrt


@pytest.fixture
def save_model(tmp_path):
    """Write a graph of one node with the given opsets, and return its path."""

    def save(node, *, domains=None, constants=()):
        graph = helper.make_graph(
            [node],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, None])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            list(constants),
        )
        opsets = [helper.make_opsetid(*pair) for pair in (domains or {"": 17}).items()]
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path

    return save


def test_artefact_is_described_by_its_card_and_its_graph(make_artefact):
    path = make_artefact(outputs=("labels", "confidence"))
    inspection = inspect_onnx(path)
    assert inspection.card.name == "small"
    assert (inspection.opset, inspection.ir_version) == (17, 8)
    assert inspection.inputs == ("frames uint8 (N, 64, 128, 3)",)
    assert inspection.outputs == ("labels uint8 (N, 64, 128)", "confidence uint8 (N, 64, 128)")
    assert inspection.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert inspection.ops["Conv"] > 50


@pytest.mark.parametrize(
    ("precision", "kind"),
    [pytest.param("fp32", "float", id="fp32"), pytest.param("fp16", "float16", id="fp16")],
)
def test_weights_are_counted_by_type(precision, kind, make_artefact):
    assert set(inspect_onnx(make_artefact(precision=precision)).weight_types) == {kind}


def test_constants_are_no_inputs_though_old_files_list_them_there(save_model):
    constant = numpy_helper.from_array(np.ones((2, 3), np.float32), "k")
    path = save_model(helper.make_node("Mul", ["x", "k"], ["y"]), constants=[constant])
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [2, 3]))
    onnx.save(model, path)
    inspection = inspect_onnx(path)
    assert inspection.inputs == ("x float (N, 2, ?)",)
    assert inspection.weight_types == {"float": 6}


def test_label_set_that_is_printed_can_be_fed_back(make_artefact, invoke, tmp_path):
    done = invoke("esnet-export", "inspect", make_artefact(), "--label-set")
    (tmp_path / "classes.yaml").write_text(done.stdout)
    assert load_label_set(tmp_path / "classes.yaml") == CAMVID


def test_label_set_of_another_tools_file_is_refused(save_model, invoke):
    path = save_model(helper.make_node("Abs", ["x"], ["y"]))
    done = invoke("esnet-export", "inspect", path, "--label-set")
    assert done.returncode == 2
    assert "without a model card" in done.stderr


def test_file_without_the_default_operators_is_described(save_model):
    node = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml")
    inspection = inspect_onnx(save_model(node, domains={"ai.onnx.ml": 3}))
    assert (inspection.opset, inspection.ops) == (0, {"Normalizer": 1})


def test_file_whose_weights_lie_elsewhere_is_described_without_them(save_model, tmp_path):
    constant = numpy_helper.from_array(np.ones((2, 3), np.float32), "k")
    onnx.external_data_helper.set_external_data(constant, "gone.bin")
    constant.ClearField("raw_data")
    path = save_model(helper.make_node("Mul", ["x", "k"], ["y"]), constants=[constant])
    assert inspect_onnx(path).weight_types == {"float": 6}


def test_damage_inside_the_graph_is_told_as_one(make_artefact, tmp_path):
    content = bytearray(make_artefact().read_bytes())
    content[40:4000] = b"\xff" * 3960
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"bad\.onnx is damaged"):
        inspect_onnx(tmp_path / "bad.onnx")


def test_text_tells_the_formula_of_the_mean(make_artefact):
    path = make_artefact(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    text = " ".join(text_from_inspection(inspect_onnx(path)).split())
    assert "(x / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.2, 0.2) is in the graph" in text


def test_text_tells_what_a_caller_of_a_tensor_artefact_computes(make_artefact):
    text = " ".join(text_from_inspection(inspect_onnx(make_artefact(input="tensor"))).split())
    assert "in tensor float32 (1..8, 3, 64, 128) RGB; the caller computes x / 255" in text


class TestEngine:
    """``inspect`` of an engine: its record, and its layers where TensorRT loads it."""

    @pytest.fixture
    def engine(self, monkeypatch, make_artefact, tmp_path):
        """An engine of a fake TensorRT, which stays installed."""
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
        gpu = "NVIDIA GeForce RTX 3060", (8, 6)
        monkeypatch.setattr("export.engine.build.cuda_gpu", lambda *_: gpu)
        options = BuildOptions(
            precision="fp32", tensorrt="tensorrt", timing_cache_path=tmp_path / "t"
        )
        command = ["esnet-export", "build-engine", "small.onnx", "--fp32"]
        return build_engine(make_artefact(), tmp_path / "a.engine", options, command=command).path

    def test_the_record_and_every_layer_with_its_types_are_printed(self, engine, invoke):
        done = invoke("esnet-export", "inspect", engine)
        lines = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        assert "with      tensorrt 10.3.0" in lines
        assert "build     command: esnet-export build-engine small.onnx --fp32" in lines
        assert "name      small, fp32" in lines
        layers = [line for line in lines if line.startswith("layer ")]
        assert len(layers) == read_record(engine).kernels["count"] > 60
        assert sum("Float -> Float" in line for line in layers) > 30

    def test_without_its_tensorrt_the_reason_is_printed(self, engine, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.16.1"))
        inspection = inspect_engine(engine)
        assert inspection.layers == ()
        assert "was built by tensorrt 10.3.0, here is tensorrt 10.16.1" in inspection.problem
        assert "layers    unknown: " in text_of_engine(inspection)

    def test_an_engine_that_was_changed_is_not_loaded(self, engine):
        engine.write_bytes(engine.read_bytes() + b"x")
        assert "the sha256 differs" in inspect_engine(engine).problem

    def test_json_holds_record_and_layers(self, engine, invoke):
        fields = json.loads(invoke("esnet-export", "inspect", engine, "--json").stdout)
        assert fields["record"]["tensorrt"] == {"kind": "tensorrt", "version": "10.3.0"}
        assert fields["layers"][0].keys() >= {"kind", "name", "inputs", "outputs"}

    def test_its_classes_are_printed_as_a_label_set_file(self, engine, invoke):
        text = invoke("esnet-export", "inspect", engine, "--label-set").stdout
        assert yaml.safe_load(text) == CAMVID.as_dict()


def test_names_in_the_graph_cannot_control_a_terminal(save_model):
    path = save_model(helper.make_node("Relu", ["x"], ["y"]))
    data = path.read_bytes().replace(b"Relu", b"R\x1b\xffu").replace(b"\x01y", b"\x01\x07")
    path.write_bytes(data)
    inspection = inspect_onnx(path)
    assert inspection.ops == {"R\ufffd\ufffdu": 1}
    assert inspection.outputs[0].startswith("\ufffd ")
