"""``Segmenter``: frames as cameras and files give them, maps of their own size out."""

import numpy as np
import pytest

from esnet import Segmenter
from runtime.artefact.card import BatchRange
from runtime.backend import open_backend
from runtime.errors import InvalidInput
from runtime.media.overlay import draw_overlay


@pytest.fixture(scope="module")
def segmenter(make_artefact):
    with Segmenter.open(make_artefact(), backend="onnxruntime") as opened:
        yield opened


@pytest.fixture(scope="module")
def confident(make_artefact):
    path = make_artefact(outputs=("labels", "confidence"))
    with Segmenter.open(path, backend="onnxruntime") as opened:
        yield opened


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    "size_hw",
    [
        pytest.param((64, 128), id="the-model's"),
        pytest.param((100, 75), id="neither-multiple-of-8"),
        pytest.param((360, 480), id="larger"),
        pytest.param((9, 700), id="wide"),
        pytest.param((1, 1), id="one-pixel"),
    ],
)
def test_labels_have_the_frames_own_size(segmenter, size_hw):
    labels = segmenter.segment(noise(*size_hw, 3))
    assert labels.shape == size_hw
    assert labels.dtype == np.uint8


def test_a_frame_of_the_models_size_gives_what_the_backend_gives(segmenter, frame):
    expected = segmenter.backend.infer(frame[None])[0][0]
    np.testing.assert_array_equal(segmenter.segment(frame), expected)


def test_labels_of_a_larger_frame_are_the_models_enlarged(segmenter, frame):
    doubled = frame.repeat(2, 0).repeat(2, 1)
    expected = segmenter.segment(frame).repeat(2, 0).repeat(2, 1)
    assert np.mean(segmenter.segment(doubled) == expected) > 0.95


@pytest.fixture(scope="module")
def bgr_segmenter(segmenter):
    """The same backend, for frames in OpenCV's channel order."""
    return Segmenter(segmenter.backend, color="bgr")


def swapped(frame):
    return np.ascontiguousarray(frame[..., ::-1])


@pytest.mark.parametrize("size_hw", [(64, 128), (50, 70)], ids=["the-model's", "another"])
def test_bgr_frames_give_the_labels_of_their_rgb_twins(segmenter, bgr_segmenter, size_hw):
    frame = noise(*size_hw, 3)
    np.testing.assert_array_equal(bgr_segmenter.segment(swapped(frame)), segmenter.segment(frame))
    assert np.any(bgr_segmenter.segment(frame) != segmenter.segment(frame))


def test_a_tensor_input_takes_bgr_frames_too(make_artefact, frame):
    with Segmenter.open(make_artefact(input="tensor"), backend="onnxruntime") as rgb:
        bgr = Segmenter(rgb.backend, color="bgr")
        np.testing.assert_array_equal(bgr.segment(swapped(frame)), rgb.segment(frame))


def test_overlays_have_the_channel_order_of_their_frames(segmenter, bgr_segmenter, frame):
    np.testing.assert_array_equal(
        swapped(bgr_segmenter.overlay(swapped(frame))), segmenter.overlay(frame)
    )


def test_an_unknown_channel_order_is_refused(make_artefact):
    with pytest.raises(InvalidInput, match="color must be 'rgb' or 'bgr', got 'yuv'"):
        Segmenter.open(make_artefact(), backend="null", color="yuv")


@pytest.mark.parametrize("size_hw", [(64, 128), (50, 70)], ids=["the-model's", "another"])
def test_a_batch_gives_what_its_frames_give_one_by_one(segmenter, size_hw):
    batch = noise(10, *size_hw, 3)
    expected = np.stack([segmenter.segment(frame) for frame in batch])
    np.testing.assert_array_equal(segmenter.segment(batch), expected)


@pytest.mark.parametrize("count", [2, 11])
def test_a_list_may_hold_frames_of_any_sizes(segmenter, count):
    frames = [noise(20 + 7 * index, 90 - index, 3, seed=index) for index in range(count)]
    labels = segmenter.segment(frames)
    assert len(labels) == count
    for frame, found in zip(frames, labels, strict=True):
        np.testing.assert_array_equal(found, segmenter.segment(frame))


def test_a_batch_of_one_keeps_its_axis(segmenter, frame):
    assert segmenter.segment(frame[None]).shape == (1, 64, 128)


def test_the_filling_of_a_fixed_batch_is_cut_off(make_artefact):
    with Segmenter.open(make_artefact(batch=BatchRange(4, 4, 4)), backend="null") as segmenter:
        assert segmenter.segment(noise(6, 64, 128, 3)).shape == (6, 64, 128)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        pytest.param(np.zeros((8, 8, 3), np.float32), r"got float32 \(8, 8, 3\)", id="float"),
        pytest.param(np.zeros((8, 8, 4), np.uint8), r"got uint8 \(8, 8, 4\)", id="alpha-channel"),
        pytest.param(np.zeros((8, 8), np.uint8), r"got uint8 \(8, 8\)", id="grey"),
        pytest.param(np.zeros((0, 8, 3), np.uint8), r"got uint8 \(0, 8, 3\)", id="no-rows"),
        pytest.param(np.zeros((2, 3, 8, 8), np.uint8), r"got uint8 \(3, 8, 8\)", id="planes-first"),
        pytest.param(np.zeros((0, 8, 8, 3), np.uint8), "at least one frame", id="empty-batch"),
        pytest.param([[1, 2, 3]], "numpy array, got list", id="list"),
        pytest.param([], "at least one frame", id="empty-list"),
    ],
)
def test_what_is_no_frame_is_refused(segmenter, frames, message):
    with pytest.raises(InvalidInput, match=message):
        segmenter.segment(frames)


@pytest.mark.parametrize("size_hw", [(64, 128), (50, 70)], ids=["the-model's", "another"])
def test_labels_are_fresh_and_the_callers_own(segmenter, size_hw):
    first = segmenter.segment(noise(*size_hw, 3, seed=1))
    kept = first.copy()
    second = segmenter.segment(noise(*size_hw, 3, seed=2))
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    assert first.flags.writeable


def test_the_frame_is_left_as_it_is(segmenter, frame):
    before = frame.copy()
    segmenter.segment(frame)
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("shape", [(50, 70, 3), (3, 50, 70, 3)], ids=["frame", "batch"])
def test_confidence_has_the_shape_of_the_labels(confident, shape):
    labels, confidence = confident.segment_with_confidence(noise(*shape))
    assert labels.shape == confidence.shape == shape[:-1]
    assert confidence.dtype == np.uint8


def test_confidence_is_at_least_an_even_guess(confident, frame):
    _, confidence = confident.segment_with_confidence(frame)
    assert confidence.min() >= 255 // 11


def test_labels_do_not_change_with_confidence(confident, frame):
    labels, _ = confident.segment_with_confidence(frame)
    np.testing.assert_array_equal(labels, confident.segment(frame))


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_an_artefact_without_confidence_says_how_to_get_it(make_artefact, frame, output):
    with (
        Segmenter.open(make_artefact(outputs=(output,)), backend="null") as segmenter,
        pytest.raises(InvalidInput, match=f"gives {output}, no confidence") as refusal,
    ):
        segmenter.segment_with_confidence(frame)
    assert refusal.value.hint == "export it with --output labels+confidence"


def test_overlay_computes_the_labels_it_is_not_given(segmenter, frame):
    labels = segmenter.segment(frame)
    np.testing.assert_array_equal(
        segmenter.overlay(frame, alpha=0.3, legend=False),
        draw_overlay(frame, labels, segmenter.card, alpha=0.3, legend=False),
    )


def test_overlay_uses_the_labels_it_is_given(segmenter, frame):
    labels = np.full((64, 128), 3, np.uint8)
    picture = segmenter.overlay(frame, labels, alpha=1, legend=False)
    assert (picture == segmenter.card.palette[3]).all()


def test_it_closes_the_backend_it_wraps(make_artefact, frame):
    backend = open_backend(make_artefact(), "null")
    with Segmenter(backend):
        pass
    with pytest.raises(InvalidInput, match="closed"):
        backend.infer(frame[None])


def test_open_passes_its_options_on(make_artefact):
    with pytest.raises(InvalidInput, match="onnxruntime cannot run bf16"):
        Segmenter.open(make_artefact(), backend="onnxruntime", precision="bf16")
