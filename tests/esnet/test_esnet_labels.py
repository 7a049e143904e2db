"""Label sets: names, colours, mask values, files, and what is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from esnet.errors import LabelSetError
from esnet.labels import (
    CAMVID,
    CITYSCAPES,
    LabelSet,
    label_set_from_dict,
    load_label_set,
    numbered_classes,
)

ORCHARD = LabelSet(
    name="orchard",
    class_names=("path", "tree", "Äpfel"),
    palette=((128, 64, 128), (0, 128, 0), (255, 0, 0)),
    ignore_index=200,
    label_values={7: 0, 21: 1, 22: 1, 40: 2, 0: 200},
)


def test_cityscapes_label_ids_are_the_datasets_in_train_id_order():
    stored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = {label_id: 255 for label_id in range(34)}
    expected |= {label_id: index for index, label_id in enumerate(stored)}
    assert CITYSCAPES.label_values == expected


@pytest.mark.parametrize(
    ("label_set", "index", "name", "colour"),
    [
        pytest.param(CITYSCAPES, 0, "road", (128, 64, 128), id="cityscapes-first"),
        pytest.param(CITYSCAPES, 13, "car", (0, 0, 142), id="cityscapes-car"),
        pytest.param(CITYSCAPES, 18, "bicycle", (119, 11, 32), id="cityscapes-last"),
        pytest.param(CAMVID, 0, "sky", (128, 128, 128), id="camvid-first"),
        pytest.param(CAMVID, 8, "car", (64, 0, 128), id="camvid-car"),
        pytest.param(CAMVID, 10, "bicyclist", (0, 128, 192), id="camvid-last"),
    ],
)
def test_classes_have_their_datasets_names_and_colours(label_set, index, name, colour):
    assert (label_set.class_names[index], label_set.palette[index]) == (name, colour)


@pytest.mark.parametrize(
    ("label_set", "ignore_index"),
    [pytest.param(CITYSCAPES, 255, id="cityscapes"), pytest.param(CAMVID, 11, id="camvid")],
)
def test_ignore_index_is_the_datasets_and_no_class(label_set, ignore_index):
    assert label_set.ignore_index == ignore_index >= label_set.num_classes


@pytest.mark.parametrize("num_classes", [2, 11, 19, 20, 255])
def test_colours_that_nobody_chose_differ_from_one_another_and_from_black(num_classes):
    palette = set(numbered_classes(num_classes).palette)
    assert len(palette - {(0, 0, 0)}) == num_classes


def test_classes_that_nobody_named_are_numbered():
    assert numbered_classes(3).class_names == ("class 0", "class 1", "class 2")


class TestKindsOfMasks:
    def test_values_are_mapped(self):
        expected = {255: 200, 200: 200, 7: 0, 21: 1, 22: 1, 40: 2, 0: 200}
        assert ORCHARD.classes_of("values") == expected

    def test_values_without_a_map_are_class_indices(self):
        expected = {255: 11} | {index: index for index in range(12)}
        assert CAMVID.classes_of("values") == expected

    def test_class_indices_are_not_mapped(self):
        assert ORCHARD.classes_of("indices") == {255: 200, 0: 0, 1: 1, 2: 2, 200: 200}

    def test_255_may_be_a_class(self):
        fields = {"name": "a", "names": ["a", "b"], "label_values": {0: 0, 255: 1}}
        assert label_set_from_dict(fields).classes_of("values") == {0: 0, 255: 1}

    def test_colours_are_those_of_the_palette_and_black_is_ignored(self):
        expected = {0x804080: 0, 0x008000: 1, 0xFF0000: 2, 0: 200}
        assert ORCHARD.classes_of("colours") == expected

    def test_black_may_be_a_class(self):
        label_set = label_set_from_dict({"name": "a", "names": ["a"], "palette": [[0, 0, 0]]})
        assert label_set.classes_of("colours") == {0: 0}

    def test_one_colour_of_two_classes_is_refused(self):
        fields = {"name": "a", "names": ["a", "b"], "palette": [[1, 2, 3]] * 2}
        with pytest.raises(LabelSetError, match="two classes of a have the same colour"):
            label_set_from_dict(fields).classes_of("colours")


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "write"),
        [("set.yaml", yaml.safe_dump), ("set.yml", yaml.safe_dump), ("set.json", json.dumps)],
    )
    def test_a_written_label_set_is_read_back(self, tmp_path, name, write):
        (tmp_path / name).write_text(write(ORCHARD.as_dict()))
        assert load_label_set(tmp_path / name) == ORCHARD

    def test_names_alone_are_enough(self, tmp_path):
        (tmp_path / "town.yaml").write_text("names: [road, house]")
        found = load_label_set(tmp_path / "town.yaml")
        assert (found.name, found.ignore_index, found.label_values) == ("town", 255, {})
        assert len(set(found.palette)) == 2

    def test_a_known_set_is_found_by_name(self):
        assert load_label_set("camvid") is CAMVID

    @pytest.mark.parametrize(
        ("num_classes", "hint"),
        [
            pytest.param(19, "--label-set cityscapes or --label-set classes.yaml", id="known"),
            pytest.param(20, "--label-set classes.yaml", id="own"),
        ],
    )
    def test_another_number_of_classes_is_refused_with_what_fits(self, num_classes, hint):
        message = f"'camvid' has 11 classes, the checkpoint has {num_classes}"
        with pytest.raises(LabelSetError, match=message) as caught:
            load_label_set("camvid", num_classes=num_classes)
        assert caught.value.hint == hint

    @pytest.mark.parametrize("source", ["coco", "nowhere.yaml", "esnet/labels.py"])
    def test_what_is_no_label_set_is_refused_with_the_known_names(self, source):
        with pytest.raises(LabelSetError, match=f"'{source}' is neither a known name") as caught:
            load_label_set(source)
        assert "camvid, cityscapes" in caught.value.hint

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            pytest.param("names: [road", "cannot be parsed: .*line 1", id="syntax"),
            pytest.param("", "no list of class names", id="empty"),
            pytest.param("names: []", "no list of class names", id="no-names"),
            pytest.param("names: road", "no list of class names", id="one-word"),
            pytest.param("names: [a]\ncolors: []", "the unknown key 'colors'", id="unknown-key"),
            pytest.param("names: [a, no]", "has the name False, which is not text", id="yaml-no"),
            pytest.param("names: [a, 7]", "has the name 7, which is not text", id="number"),
            pytest.param("names: [a, b, a]", "two classes have the name 'a'", id="twice"),
            pytest.param(f"names: [{'a' * 61}]", "expected 1 to 60 printable", id="long"),
            pytest.param('names: ["a\\e[31m"]', "expected 1 to 60 printable", id="control"),
            pytest.param('names: ["a\\nb"]', "expected 1 to 60 printable", id="newline"),
            pytest.param('names: [""]', "expected 1 to 60 printable", id="no-text"),
            pytest.param('names: [" a"]', "expected 1 to 60 printable", id="space"),
            pytest.param(
                "names: [a]\nname: [b]", "has the name .'b'., which is not", id="set-name"
            ),
            pytest.param("names: [a, b]\npalette: [[0, 0, 0]]", "2 names, 1 colours", id="few"),
            pytest.param("names: [a]\npalette: [[0, 0, 256]]", "from 0 to 255", id="colour"),
            pytest.param(
                "names: [a]\npalette: [[0, 0.5, 1]]", "whole numbers: got 0.5", id="float"
            ),
            pytest.param("names: [a]\npalette: [red]", "whole numbers", id="colour-name"),
            pytest.param(
                "names: [a]\nignore_index: 0", "ignore_index 0, expected 1 to 255", id="ignore"
            ),
            pytest.param("names: [a]\nlabel_values: {7: 1}", "label_values has 7: 1", id="index"),
            pytest.param("names: [a]\nlabel_values: {-1: 0}", "label_values has -1: 0", id="value"),
            pytest.param("names: [a]\nlabel_values: [7]", "whole numbers", id="no-map"),
        ],
    )
    def test_a_bad_file_is_named_with_what_is_wrong(self, tmp_path, text, message):
        path = tmp_path / "set.yaml"
        path.write_text(text)
        with pytest.raises(LabelSetError, match=message) as caught:
            load_label_set(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000], ids=["binary", "nested"])
    def test_a_file_that_is_no_text_is_refused(self, tmp_path, content):
        (tmp_path / "set.json").write_bytes(content)
        with pytest.raises(LabelSetError, match="cannot be parsed"):
            load_label_set(tmp_path / "set.json")

    def test_more_classes_than_a_byte_holds_are_refused(self):
        with pytest.raises(LabelSetError, match="256 classes, expected 1 to 255"):
            numbered_classes(256)


def test_a_label_set_needs_a_colour_for_every_class():
    with pytest.raises(ValueError, match="'odd': 2 names, 1 colours"):
        LabelSet(name="odd", class_names=("a", "b"), palette=((0, 0, 0),))
