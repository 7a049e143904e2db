"""Card of an export, and its entry in ``metadata_props``."""

from __future__ import annotations

import shutil

import onnx
import pytest

from esnet.labels import CAMVID, numbered_classes
from export.metadata import card_from_plan, load_artefact, require_artefact_output, with_card
from export.plan import ExportPlan
from runtime.artefact.card import CARD_KEY, ModelCard
from runtime.artefact.onnx_file import GRAPH_KEY
from runtime.errors import InvalidInput, ModelFileError

CARD = card_from_plan(ExportPlan(size_hw=(64, 128)), CAMVID, name="small")


@pytest.fixture
def model() -> onnx.ModelProto:
    """Model with an older card and an entry of another tool."""
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, {CARD_KEY: "old", "author": "somebody"})
    return model


def test_card_replaces_an_older_one_and_keeps_other_entries(model):
    entries = {entry.key: entry.value for entry in with_card(model, CARD).metadata_props}
    assert len(entries.pop(GRAPH_KEY)) == 64
    assert entries == {CARD_KEY: CARD.to_json(), "author": "somebody"}


def test_model_that_is_given_a_card_stays_as_it_was(model):
    before = model.SerializeToString()
    with_card(model, CARD)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("optimized_for", "head_classes"),
    [
        pytest.param("tensorrt", 16, id="tensorrt-padded"),
        pytest.param("onnxruntime", 11, id="onnxruntime-plain"),
    ],
)
def test_card_tells_the_form_of_the_graph(optimized_for, head_classes):
    card = card_from_plan(
        ExportPlan(optimized_for=optimized_for, upsample="subpixel"), CAMVID, name="small"
    )
    form = {key: card.form[key] for key in ("upsample", "head_classes", "opset")}
    assert form == {"upsample": "subpixel", "head_classes": head_classes, "opset": 17}


@pytest.mark.parametrize(
    ("num_classes", "suits"),
    [
        pytest.param(11, ["openvino"], id="small head"),
        pytest.param(19, ["openvino", "onnxruntime"], id="large head"),
    ],
)
def test_card_lists_the_engines_that_the_form_suits(num_classes, suits):
    plan = ExportPlan(optimized_for="openvino")
    card = card_from_plan(plan, numbered_classes(num_classes), name="some")
    assert card.form["suits"] == suits


def test_an_artefact_replaces_only_an_artefact(make_artefact, tmp_path):
    source, path = tmp_path / "weights.pt", tmp_path / "model.onnx"
    source.touch()
    require_artefact_output(path, source=source)
    shutil.copy(make_artefact(), path)
    require_artefact_output(path, source=source)
    with pytest.raises(InvalidInput, match="is the input file itself"):
        require_artefact_output(path, source=path)
    path.write_bytes(b"\x08\x0e:7")
    with pytest.raises(InvalidInput, match="exists and was not written by esnet-export"):
        require_artefact_output(path, source=source)


def test_a_graph_of_another_card_is_refused(make_artefact, tmp_path):
    card = ModelCard.from_file(make_artefact(outputs=("logits",)))
    onnx.save(with_card(onnx.load(make_artefact()), card), tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match="its graph has no logits"):
        load_artefact(tmp_path / "a.onnx")
