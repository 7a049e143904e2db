"""Frames become what an artefact takes, and maps go back without a value invented."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.media.frames import batch_from_frames, resize_frame, resize_map


def test_a_frame_that_fits_is_not_copied(frame):
    assert resize_frame(frame, (64, 128)) is frame


def test_a_frame_is_resized_bilinearly():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 200
    assert set(np.unique(resize_frame(edge, (8, 32)))) == {0, 25, 75, 125, 175, 200}


@pytest.mark.parametrize("size_hw", [(37, 11), (500, 301), (1, 1)])
def test_a_map_keeps_its_values(size_hw):
    class_map = np.array([[0, 255], [7, 10]], np.uint8)
    assert set(np.unique(resize_map(class_map, size_hw))) <= {0, 7, 10, 255}


def test_a_map_of_twice_the_size_repeats_each_value():
    class_map = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(
        resize_map(class_map, (6, 8)), class_map.repeat(2, 0).repeat(2, 1)
    )


@pytest.mark.parametrize(
    ("frame_hw", "inner"),
    [
        pytest.param((20, 20), (slice(0, 8), slice(4, 12)), id="too-narrow"),
        pytest.param((10, 40), (slice(2, 6), slice(0, 16)), id="too-wide"),
        pytest.param((1, 400), (slice(3, 4), slice(0, 16)), id="a-line"),
    ],
)
def test_a_letterboxed_frame_lies_between_black_bars(frame_hw, inner):
    image = np.full((*frame_hw, 3), 200, np.uint8)
    boxed = resize_frame(image, (8, 16), letterbox=True)
    assert boxed.shape == (8, 16, 3)
    assert (boxed[inner] == 200).all()
    assert boxed.sum(dtype=int) == boxed[inner].sum(dtype=int)


def test_letterboxing_reuses_memory_that_held_another_frame():
    memory = np.full((8, 16, 3), 99, np.uint8)
    boxed = resize_frame(np.full((20, 20, 3), 200, np.uint8), (8, 16), memory, letterbox=True)
    assert boxed is memory
    assert set(np.unique(boxed)) == {0, 200}


@pytest.mark.parametrize("size_hw", [(20, 20), (10, 40), (64, 3)])
def test_the_map_of_a_letterboxed_frame_has_no_bars(size_hw):
    class_map = resize_frame(np.full((*size_hw, 3), 7, np.uint8), (8, 16), letterbox=True)[..., 0]
    restored = resize_map(class_map, size_hw, letterbox=True)
    assert restored.shape == size_hw
    assert (restored == 7).all()


def test_a_frame_of_the_inputs_shape_needs_no_bars(frame):
    assert resize_frame(frame, (64, 128), letterbox=True) is frame


def test_a_single_frame_of_the_right_size_becomes_a_view(card, frame):
    batch = batch_from_frames([frame], card)
    assert batch.shape == (1, 64, 128, 3)
    assert np.shares_memory(batch, frame)


def test_frames_of_different_sizes_become_one_batch(card, frame):
    batch = batch_from_frames([frame, frame[:32]], card)
    assert batch.shape == (2, 64, 128, 3)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", np.float32), ("fp16", np.float16)], ids=["fp32", "fp16"]
)
def test_a_tensor_is_normalised_and_has_its_planes_first(card, frame, precision, dtype):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    tensor_card = replace(card, input="tensor", mean=mean, std=std, precision=precision)
    batch = batch_from_frames([frame], tensor_card)
    expected = ((frame / 255 - mean) / std).transpose(2, 0, 1)[None]
    assert batch.dtype == dtype
    assert batch.flags.c_contiguous
    np.testing.assert_allclose(batch, expected, atol=1e-5 if dtype is np.float32 else 5e-3)
