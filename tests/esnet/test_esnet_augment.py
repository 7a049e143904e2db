"""Augmentation: labels move with their pixels, borders are ignored, seeds are reproducible."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esnet.data.augment import Augmentation, augment
from esnet.data.labelled import Sample
from esnet.data.scenes import street_scene

IGNORE = 11
PLAIN = Augmentation(crop_hw=(48, 64), flip=0.0)
WILD = Augmentation(
    crop_hw=(48, 64),
    scale=(0.5, 2.0),
    stretch=0.1,
    rotation_deg=5,
    brightness=0.2,
    contrast=0.3,
    saturation=0.4,
    tint=0.1,
)


def sample(size_hw=(48, 64)) -> Sample:
    return street_scene(size_hw, seed=3)


def marked(size_hw=(60, 80)) -> Sample:
    """An image whose red channel is the label times 20, so that moved pixels can be checked."""
    labels = (np.indices(size_hw).sum(0) // 16 % 11).astype(np.uint8)
    return Sample(np.repeat(labels[..., None] * 20, 3, axis=2), labels)


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_view_of_the_pictures_own_size_is_the_picture():
    view = augment(sample(), PLAIN, IGNORE, chance())
    np.testing.assert_array_equal(view.image, sample().image)
    np.testing.assert_array_equal(view.labels, sample().labels)


def test_a_flip_mirrors_picture_and_labels():
    view = augment(sample(), replace(PLAIN, flip=1.0), IGNORE, chance())
    np.testing.assert_array_equal(view.image, sample().image[:, ::-1])
    np.testing.assert_array_equal(view.labels, sample().labels[:, ::-1])


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_labels_move_with_their_pixels(seed):
    geometry = replace(WILD, brightness=0.0, contrast=0.0, saturation=0.0, tint=0.0)
    view = augment(marked(), geometry, IGNORE, chance(seed))
    inside = view.labels != IGNORE
    same = np.abs(view.image[..., 0].astype(int) - 20 * view.labels.astype(int)) <= 12
    # Bilinear images and nearest-neighbour labels differ only at the edges of regions.
    assert same[inside].mean() > 0.6


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_view_has_the_crops_size_and_known_labels(seed):
    view = augment(sample((40, 100)), WILD, IGNORE, chance(seed))
    assert view.image.shape == (48, 64, 3)
    assert view.image.dtype == view.labels.dtype == np.uint8
    assert set(np.unique(view.labels)) <= set(range(12))


def test_outside_the_picture_everything_is_ignored_and_grey():
    half = replace(PLAIN, scale=(0.5, 0.5))
    view = augment(sample(), half, IGNORE, chance())
    outside = view.labels == IGNORE
    assert 0.6 < outside.mean() < 0.8
    assert (view.image[outside] == 128).all(axis=1).mean() > 0.9


def test_the_same_chance_gives_the_same_view_and_another_gives_another():
    first, same, other = (augment(sample(), WILD, IGNORE, chance(seed)).image for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "tint"])
def test_each_colour_change_touches_the_picture_and_not_the_labels(name):
    image = np.random.default_rng(0).integers(60, 190, (48, 64, 3), np.uint8)
    view = augment(Sample(image, sample().labels), replace(PLAIN, **{name: 0.5}), IGNORE, chance(4))
    assert (view.image != image).mean() > 0.5
    np.testing.assert_array_equal(view.labels, sample().labels)


def test_saturation_keeps_grey_grey():
    grey = Sample(np.full((48, 64, 3), 90, np.uint8), np.zeros((48, 64), np.uint8))
    view = augment(grey, replace(PLAIN, saturation=0.9), IGNORE, chance())
    np.testing.assert_allclose(view.image, 90, atol=1)


def test_the_input_is_left_alone():
    given_sample = sample()
    augment(given_sample, WILD, IGNORE, chance())
    np.testing.assert_array_equal(given_sample.image, sample().image)
