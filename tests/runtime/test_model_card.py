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
