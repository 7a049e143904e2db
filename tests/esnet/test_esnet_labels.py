"""Label sets: names, colours, stored ids, and the choice of one for a network."""

from __future__ import annotations

import pytest

from esnet.errors import LabelSetError
from esnet.labels import CAMVID, CITYSCAPES, LabelSet, label_set_for


def test_cityscapes_label_ids_are_the_datasets_in_train_id_order():
    stored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert CITYSCAPES.train_ids == {label: train for train, label in enumerate(stored)}


@pytest.mark.parametrize(
    ("label_set", "train_id", "name", "colour"),
    [
        pytest.param(CITYSCAPES, 0, "road", (128, 64, 128), id="cityscapes-first"),
        pytest.param(CITYSCAPES, 13, "car", (0, 0, 142), id="cityscapes-car"),
        pytest.param(CITYSCAPES, 18, "bicycle", (119, 11, 32), id="cityscapes-last"),
        pytest.param(CAMVID, 0, "sky", (128, 128, 128), id="camvid-first"),
        pytest.param(CAMVID, 8, "car", (64, 0, 128), id="camvid-car"),
        pytest.param(CAMVID, 10, "bicyclist", (0, 128, 192), id="camvid-last"),
    ],
)
def test_classes_have_their_datasets_names_and_colours(label_set, train_id, name, colour):
    assert (label_set.class_names[train_id], label_set.palette[train_id]) == (name, colour)


@pytest.mark.parametrize(
    ("label_set", "ignore_index"),
    [pytest.param(CITYSCAPES, 255, id="cityscapes"), pytest.param(CAMVID, 11, id="camvid")],
)
def test_ignore_index_is_the_datasets_and_no_class(label_set, ignore_index):
    assert label_set.ignore_index == ignore_index >= label_set.num_classes


@pytest.mark.parametrize("num_classes", [2, 11, 19, 20, 255])
def test_colours_of_a_label_set_differ_from_one_another(num_classes):
    assert len(set(label_set_for(num_classes).palette)) == num_classes


@pytest.mark.parametrize(
    ("num_classes", "name", "expected"),
    [
        pytest.param(19, None, "cityscapes", id="by-19-classes"),
        pytest.param(11, None, "camvid", id="by-11-classes"),
        pytest.param(19, "cityscapes", "cityscapes", id="by-name"),
        pytest.param(20, None, "20-classes", id="numbered"),
    ],
)
def test_label_set_is_chosen_by_name_or_size(num_classes, name, expected):
    label_set = label_set_for(num_classes, name=name)
    assert (label_set.name, label_set.num_classes) == (expected, num_classes)


def test_classes_that_nobody_named_are_numbered():
    assert label_set_for(3).class_names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("num_classes", "name", "message", "hint"),
    [
        pytest.param(19, "coco", "unknown label set 'coco'", "camvid, cityscapes", id="unknown"),
        pytest.param(
            19,
            "camvid",
            "'camvid' has 11 classes, the checkpoint has 19",
            "--label-set cityscapes",
            id="another-set-fits",
        ),
        pytest.param(
            20,
            "camvid",
            "has 11 classes, the checkpoint has 20",
            "omit --label-set",
            id="no-set-fits",
        ),
    ],
)
def test_label_set_that_does_not_fit_is_refused_with_one_that_does(
    num_classes, name, message, hint
):
    with pytest.raises(LabelSetError, match=message) as caught:
        label_set_for(num_classes, name=name)
    assert hint in caught.value.hint


def test_label_set_needs_a_colour_for_every_class():
    with pytest.raises(ValueError, match="odd: 2 names, 1 colours"):
        LabelSet(name="odd", class_names=("a", "b"), palette=((0, 0, 0),), ignore_index=255)
