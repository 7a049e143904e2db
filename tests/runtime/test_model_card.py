"""The card survives its JSON form, and a card that cannot be trusted is refused."""

import json
from dataclasses import MISSING, fields, replace

import pytest

from runtime.artefact.card import CARD_KEY, ModelCard
from runtime.errors import ModelFileError

REQUIRED = [
    entry.name
    for entry in fields(ModelCard)
    if entry.default is MISSING and entry.default_factory is MISSING
]


def edited(card: ModelCard, **changes: object) -> str:
    return json.dumps(json.loads(card.to_json()) | changes)


def test_json_round_trip_keeps_every_field(card):
    full = replace(
        card,
        name="Straße 街",
        form={"upsample": "mixed", "opset": 17},
        source={"sha256": "ab"},
        parity={"max_abs": 1e-5},
        created={"command": "esnet-export to-onnx 'a b.pth'"},
    )
    assert ModelCard.from_json(full.to_json()) == full


def test_json_is_one_line(card):
    assert "\n" not in card.to_json()


def test_unknown_fields_are_ignored(card):
    assert ModelCard.from_json(edited(card, later_invention=[1, 2])) == card


def test_fields_with_a_default_may_be_missing(card):
    bare = {name: value for name, value in json.loads(card.to_json()).items() if name in REQUIRED}
    assert ModelCard.from_json(json.dumps(bare | {"schema": 1})) == replace(card, form={})


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(card, name):
    rest = json.loads(card.to_json())
    del rest[name]
    with pytest.raises(ModelFileError, match=f"a.onnx: its model card lacks {name}$"):
        ModelCard.from_json(json.dumps(rest), origin="a.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "damaged", id="empty"),
        pytest.param('{"schema": 1', "damaged", id="cut-short"),
        pytest.param("[" * 100_000, "damaged", id="nested-beyond-reason"),
        pytest.param('{"schema": ' + "1" * 5000 + "}", "damaged", id="number-beyond-reason"),
        pytest.param("[]", "schema 'list', expected 1", id="not-an-object"),
        pytest.param("{}", "schema None, expected 1", id="no-schema"),
        pytest.param('{"schema": 2}', "schema 2, expected 1", id="newer-schema"),
    ],
)
def test_what_is_no_card_is_refused(text, message):
    with pytest.raises(ModelFileError, match=message):
        ModelCard.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("input", "video", id="input"),
        pytest.param("outputs", ["depth"], id="outputs"),
        pytest.param("color", "BGR", id="color"),
        pytest.param("resize", "bicubic", id="resize"),
        pytest.param("precision", "int4", id="precision"),
    ],
)
def test_a_value_of_a_later_version_is_refused_rather_than_ignored(card, name, value):
    with pytest.raises(ModelFileError, match=f"says {name} .*this version knows"):
        ModelCard.from_json(edited(card, **{name: value}))


def test_json_round_trip_keeps_the_mask_values(card):
    full = replace(card, label_values={7: 0, 255: 1})
    assert ModelCard.from_json(full.to_json()) == full


def test_classes_are_the_content_of_a_label_set_file(card):
    assert replace(card, label_values={7: 0}).classes == {
        "name": card.label_set,
        "names": list(card.class_names),
        "palette": [list(colour) for colour in card.palette],
        "ignore_index": card.ignore_index,
        "label_values": {7: 0},
    }


def test_a_colour_is_needed_for_every_class(card):
    with pytest.raises(ModelFileError, match=r"its model card has \d+ names, 1 colours"):
        ModelCard.from_json(edited(card, palette=[[1, 2, 3]]))


def test_an_onnx_file_without_a_card_is_refused(save_onnx):
    path = save_onnx({"author": "someone else"})
    with pytest.raises(ModelFileError, match="ONNX file without a model card") as refusal:
        ModelCard.from_file(path)
    assert "esnet-export to-onnx" in refusal.value.hint


def test_a_damaged_card_is_reported_with_its_file(save_onnx):
    path = save_onnx({CARD_KEY: "{"})
    with pytest.raises(ModelFileError, match=f"{path}: its model card is damaged"):
        ModelCard.from_file(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size_hw", [512]),
        ("size_hw", [10**9, 8]),
        ("size_hw", [16384, 16384]),
        ("size_hw", [-8, 8]),
        ("batch", [1, 1, 10**9]),
        ("batch", [2, 1, 3]),
        ("batch", 5),
        ("mean", [0, 0, "a"]),
        ("std", [1, 1, 0]),
        ("class_names", ["a", 5]),
        ("palette", [[0, 0, 300]] * 11),
        ("ignore_index", 3),
        ("label_values", {"7": 99}),
        ("label_values", [1]),
        ("name", {"a": 1}),
        ("form", {"head_classes": 10**9}),
        ("form", {"suits": 5}),
        ("source", [1]),
        ("source", {"sha256": 5}),
        ("quantization", {"backends": "openvino"}),
        ("parity", {"equal_labels_bf16": "all"}),
        ("created", {"command": ["rm"]}),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_allocated(card, name, value):
    with pytest.raises(ModelFileError, match="its model card has"):
        ModelCard.from_json(edited(card, **{name: value}))


def test_text_of_a_card_cannot_control_a_terminal(card):
    evil = ModelCard.from_json(edited(card, name="\x1b]0;title\x07", source={"a": "\u202ex"}))
    assert evil.name == "\ufffd]0;title\ufffd"
    assert evil.source == {"a": "\ufffdx"}
