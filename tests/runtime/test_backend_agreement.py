"""OpenVINO and ONNX Runtime see the same in a frame, in every form that a graph can have."""

import numpy as np
import pytest

from runtime.artefact.card import BatchRange
from runtime.segmenter import Segmenter


@pytest.fixture
def frames(frame):
    """Three frames that look different."""
    return np.stack([frame, 255 - frame, frame[::-1] // 2])


def opened(path):
    return (Segmenter.open(path, backend=name) for name in ("openvino", "onnxruntime"))


def assert_same_labels(left, right):
    """Rounding may decide a tie at a pixel here or there, on this CPU or another."""
    assert left.shape == right.shape
    assert np.mean(left != right) < 1e-3


def test_the_labels_depend_on_the_frame(make_artefact, frames):
    with Segmenter.open(make_artefact(), backend="onnxruntime") as segmenter:
        first, second, _ = segmenter.segment(frames)
    assert np.mean(first != second) > 0.05


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"optimized_for": "tensorrt"}, id="for-tensorrt"),
        pytest.param({"optimized_for": "openvino"}, id="for-openvino"),
        pytest.param({"optimized_for": "onnxruntime"}, id="for-onnxruntime"),
        pytest.param({"optimized_for": "openvino", "upsample": "subpixel"}, id="subpixel"),
        pytest.param({"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2)}, id="mean-and-std"),
        pytest.param({"outputs": ("logits",)}, id="logits"),
        pytest.param({"input": "tensor"}, id="tensor-input"),
        pytest.param({"batch": BatchRange(1, 2, 2)}, id="more-frames-than-a-batch"),
        pytest.param({"batch": BatchRange(4, 4, 4)}, id="fewer-frames-than-a-fixed-batch"),
    ],
)
def test_labels_are_equal(make_artefact, frames, settings):
    left, right = opened(make_artefact(**settings))
    with left, right:
        assert_same_labels(left.segment(frames), right.segment(frames))


def test_labels_and_confidence_are_equal(make_artefact, frames):
    left, right = opened(make_artefact(outputs=("labels", "confidence")))
    with left, right:
        labels, confidence = left.segment_with_confidence(frames)
        other_labels, other_confidence = right.segment_with_confidence(frames)
    assert_same_labels(labels, other_labels)
    np.testing.assert_allclose(confidence.astype(int), other_confidence, atol=1)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"optimized_for": "openvino"}, id="form"),
        pytest.param({"outputs": ("logits",)}, id="logits"),
        pytest.param({"outputs": ("labels", "confidence")}, id="labels+confidence"),
        pytest.param({"input": "tensor"}, id="tensor-input"),
        pytest.param({"batch": BatchRange(1, 2, 2)}, id="more-frames-than-a-batch"),
        pytest.param({"batch": BatchRange(4, 4, 4)}, id="fewer-frames-than-a-fixed-batch"),
        pytest.param(
            {"batch": BatchRange(4, 4, 4), "outputs": ("logits",)}, id="logits-of-a-fixed-batch"
        ),
    ],
)
def test_another_graph_of_the_same_weights_gives_the_same_labels(make_artefact, frames, settings):
    with (
        Segmenter.open(make_artefact(), backend="onnxruntime") as plain,
        Segmenter.open(make_artefact(**settings), backend="onnxruntime") as other,
    ):
        assert_same_labels(other.segment(frames), plain.segment(frames))
