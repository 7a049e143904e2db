"""Colours, blending and the legend."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.overlay import colors_from_labels, draw_overlay


@pytest.fixture
def grey():
    return np.full((256, 512, 3), 120, np.uint8)


def test_each_class_gets_its_colour(card):
    labels = np.arange(card.num_classes, dtype=np.uint8)[None]
    np.testing.assert_array_equal(colors_from_labels(labels, card)[0], card.palette)


@pytest.mark.parametrize("value", [11, 200, 255])
def test_values_beyond_the_classes_are_black(card, value):
    assert not colors_from_labels(np.full((2, 2), value, np.uint8), card).any()


def test_ignore_index_is_black_even_where_labels_are_bright(card):
    labels = np.array([[0, card.ignore_index]], np.uint8)
    assert colors_from_labels(labels, card)[0].tolist() == [list(card.palette[0]), [0, 0, 0]]


def test_alpha_zero_is_the_frame(card, frame):
    picture = draw_overlay(frame, np.zeros((64, 128), np.uint8), card, alpha=0, legend=False)
    np.testing.assert_array_equal(picture, frame)


def test_alpha_one_is_the_colours(card, frame):
    labels = np.random.default_rng(0).integers(0, 11, (64, 128), dtype=np.uint8)
    picture = draw_overlay(frame, labels, card, alpha=1, legend=False)
    np.testing.assert_array_equal(picture, colors_from_labels(labels, card))


def test_alpha_between_mixes_both(card, grey):
    labels = np.full((256, 512), 2, np.uint8)
    picture = draw_overlay(grey, labels, card, alpha=0.25, legend=False)
    expected = 0.75 * 120 + 0.25 * np.array(card.palette[2])
    np.testing.assert_allclose(picture[0, 0], expected, atol=1)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range_is_refused(card, frame, alpha):
    with pytest.raises(InvalidInput, match="alpha must be between 0 and 1"):
        draw_overlay(frame, np.zeros((64, 128), np.uint8), card, alpha=alpha)


def test_labels_of_another_size_are_refused(card, frame):
    with pytest.raises(InvalidInput, match=r"labels \(64, 64\) and frame \(64, 128\) differ"):
        draw_overlay(frame, np.zeros((64, 64), np.uint8), card)


def test_a_grey_frame_is_refused(card):
    with pytest.raises(InvalidInput, match=r"uint8 \(H, W, 3\), got uint8 \(64, 128\)"):
        draw_overlay(np.zeros((64, 128), np.uint8), np.zeros((64, 128), np.uint8), card)


def test_the_frame_is_left_as_it_is(card, frame):
    before = frame.copy()
    draw_overlay(frame, np.zeros((64, 128), np.uint8), card)
    np.testing.assert_array_equal(frame, before)


def swatches(card, labels, grey):
    """The classes whose pure colour the legend shows, from top to bottom."""
    column = draw_overlay(grey, labels, card, alpha=0)[:, 6].tolist()
    shown = [card.palette.index(tuple(c)) for c in column if tuple(c) in card.palette]
    return list(dict.fromkeys(shown))


def test_the_legend_lists_what_occurs_largest_first(card, grey):
    labels = np.full((256, 512), 4, np.uint8)
    labels[:60] = 7
    labels[:20] = 2
    assert swatches(card, labels, grey) == [4, 7, 2]


def test_the_legend_leaves_out_specks(card, grey):
    labels = np.full((256, 512), 4, np.uint8)
    labels[0, :100] = 7
    assert swatches(card, labels, grey) == [4]


def test_the_legend_leaves_out_the_ignore_index(card, grey):
    labels = np.full((256, 512), card.ignore_index, np.uint8)
    labels[:100] = 5
    assert swatches(card, labels, grey) == [5]


def test_the_legend_stays_in_its_corner(card, grey):
    labels = np.zeros((256, 512), np.uint8)
    picture = draw_overlay(grey, labels, card, alpha=0)
    assert (picture[128:] == 120).all()
    assert (picture[:, 256:] == 120).all()


def test_no_legend_without_a_class(card, grey):
    labels = np.full((256, 512), 255, np.uint8)
    np.testing.assert_array_equal(draw_overlay(grey, labels, card, alpha=0), grey)


@pytest.mark.parametrize(
    "size_hw", [(1, 1), (1, 500), (8, 8), (17, 3), (500, 1)], ids=lambda hw: f"{hw[0]}x{hw[1]}"
)
def test_tiny_frames_are_drawn_on(card, size_hw):
    labels = np.random.default_rng(0).integers(0, 11, size_hw, dtype=np.uint8)
    picture = draw_overlay(np.zeros((*size_hw, 3), np.uint8), labels, card)
    assert picture.shape == (*size_hw, 3)


def test_a_long_class_name_does_not_leave_the_picture(card, grey):
    wordy = replace(card, class_names=("a class with a name of some length " * 5,) * 11)
    picture = draw_overlay(grey, np.zeros((256, 512), np.uint8), wordy)
    assert picture.shape == grey.shape
