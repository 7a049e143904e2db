"""Generated street scenes: the same for the same seed, and labelled where they are painted."""

from __future__ import annotations

import numpy as np
import pytest

from esnet.data.scenes import street_scene
from esnet.labels import CAMVID


@pytest.mark.parametrize("size_hw", [(64, 128), (37, 55), (512, 1024)], ids=str)
def test_scene_has_an_rgb_image_and_labels_of_the_size_asked_for(size_hw):
    scene = street_scene(size_hw)
    assert (scene.image.shape, scene.image.dtype) == ((*size_hw, 3), np.uint8)
    assert (scene.labels.shape, scene.labels.dtype) == (size_hw, np.uint8)


def test_same_seed_gives_the_same_scene():
    first, second = street_scene((64, 128), seed=5), street_scene((64, 128), seed=5)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_other_seeds_give_other_scenes():
    first, second = street_scene((64, 128), seed=0), street_scene((64, 128), seed=1)
    assert (first.labels != second.labels).any()
    assert (first.image != second.image).any()


def test_scene_shows_every_class_and_nothing_else():
    assert set(np.unique(street_scene((512, 1024)).labels)) == set(range(CAMVID.num_classes))


def test_image_shows_what_the_labels_say():
    scene = street_scene((256, 512))
    sky, road = (scene.labels == CAMVID.class_names.index(name) for name in ("sky", "road"))
    assert scene.image[sky].mean() > 180
    assert scene.image[road].mean() < 130
