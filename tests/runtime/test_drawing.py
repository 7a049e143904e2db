"""How results are drawn: chosen classes, mask values, confidence."""

from dataclasses import replace

import numpy as np
import pytest

from esnet.labels import CITYSCAPES
from runtime.errors import InvalidInput
from runtime.media.overlay import colors_from_labels
from runtime.output.drawing import Drawing
from runtime.segmenter import Result


@pytest.fixture
def result(frame):
    labels = np.repeat(np.arange(64, dtype=np.uint8)[:, None] // 6, 128, 1)  # classes 0 to 10
    return Result(frame, labels, 255 - labels, 0, 0.0, "a")


def test_chosen_classes_get_their_colour_and_the_others_are_black(card, result):
    names = (card.class_names[3], card.class_names[5])
    image = Drawing(kind="colors", classes=names).for_card(card)(result)
    is_shown = np.isin(result.labels, (3, 5))
    whole = colors_from_labels(result.labels, card)
    np.testing.assert_array_equal(image[is_shown], whole[is_shown])
    assert not image[~is_shown].any()


def test_an_overlay_of_chosen_classes_leaves_the_rest_of_the_frame(card, result):
    drawing = Drawing(classes=(card.class_names[3],), legend=False)
    image = drawing.for_card(card)(result)
    whole = replace(drawing, classes=()).for_card(card)(result)
    is_shown = result.labels == 3
    np.testing.assert_array_equal(image[is_shown], whole[is_shown])
    np.testing.assert_array_equal(image[~is_shown], result.frame[~is_shown])


def test_the_legend_names_chosen_classes_only(card, result):
    one, all_classes = (
        Drawing(alpha=0.0, classes=classes).for_card(card)(result)
        for classes in (card.class_names[3:4], card.class_names)
    )
    changed = [(image != result.frame).any(-1).sum() for image in (one, all_classes)]
    assert 0 < changed[0] < changed[1]


def test_mask_values_are_those_of_the_dataset(card, result):
    card = replace(
        card,
        label_set="cityscapes",
        class_names=CITYSCAPES.class_names,
        palette=CITYSCAPES.palette,
        label_values=CITYSCAPES.label_values,
    )
    values = Drawing(kind="labels", label_ids=True).for_card(card)(result)
    names = {7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"}
    for value, name in names.items():
        is_class = result.labels == CITYSCAPES.class_names.index(name)
        assert set(np.unique(values[is_class])) == {value}


def test_confidence_is_the_map_itself(card, result):
    card = replace(card, outputs=("labels", "confidence"))
    assert Drawing(kind="confidence").for_card(card)(result) is result.confidence


def test_a_window_shows_indices_as_colours(card, result):
    image = Drawing(kind="labels").for_window(card)(result)
    np.testing.assert_array_equal(image, colors_from_labels(result.labels, card))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("river",)}, "the artefact has no class 'river'"),
        ({"kind": "confidence"}, "the artefact gives labels, no confidence"),
        (
            {"kind": "labels", "label_ids": True},
            "masks of the label set 'camvid' hold class indices",
        ),
    ],
    ids=["class", "confidence", "mask-values"],
)
def test_what_the_artefact_lacks_is_an_error(card, settings, message):
    with pytest.raises(InvalidInput, match=message):
        Drawing(**settings).for_card(replace(card, label_values={}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "labels", "classes": ("car",)}, "classes has no effect on labels"),
        ({"label_ids": True}, "label-ids has no effect on overlay"),
    ],
    ids=["classes", "label-ids"],
)
def test_a_setting_without_effect_is_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        Drawing(**settings)
