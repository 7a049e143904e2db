"""mIoU compared with a hand-made case and with torchmetrics, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from esnet.metrics import ConfusionMatrix

K, IGNORE = 5, 255


def matrix_of(labels, predictions, num_classes=K) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes, IGNORE)
    matrix.update(np.asarray(labels), np.asarray(predictions))
    return matrix


def test_a_case_counted_by_hand():
    matrix = matrix_of([0, 0, 1, 1, IGNORE], [0, 1, 1, 1, 0], num_classes=3)
    np.testing.assert_allclose(matrix.iou_per_class, [1 / 2, 2 / 3, np.nan])
    assert matrix.miou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert matrix.pixel_accuracy == pytest.approx(3 / 4)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_classes=st.integers(2, 19))
def test_it_agrees_with_torchmetrics(seed, num_classes):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, (3, 20, 30))
    predictions = np.where(
        random.random(labels.shape) < 0.6, labels, random.integers(0, num_classes, labels.shape)
    )
    labels[random.random(labels.shape) < 0.1] = IGNORE
    matrix = ConfusionMatrix(num_classes, IGNORE)
    for true, predicted in zip(labels, predictions, strict=True):
        matrix.update(true, predicted)
    theirs = MulticlassJaccardIndex(num_classes, ignore_index=IGNORE)(
        torch.tensor(predictions), torch.tensor(labels)
    )
    assert matrix.miou == pytest.approx(float(theirs), abs=1e-6)


def test_pictures_add_up_to_what_they_are_together():
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, K, (2, 4, 8, 8))
    whole = matrix_of(labels, predictions)
    parts = ConfusionMatrix(K, IGNORE)
    for true, predicted in zip(labels, predictions, strict=True):
        parts.update(true, predicted)
    np.testing.assert_array_equal(parts.counts, whole.counts)


def test_bytes_are_counted_as_well_as_longs():
    labels = np.full((4, 4), 4, np.uint8)
    assert matrix_of(labels, labels).counts[4, 4] == 16


def test_nothing_labelled_gives_no_figure():
    matrix = matrix_of([IGNORE], [0])
    assert np.isnan(matrix.miou)
    assert np.isnan(matrix.pixel_accuracy)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        pytest.param([0, 1], [0], "differ in shape", id="shape"),
        pytest.param([0, 7], [0, 0], "labels hold 0 to 7", id="label"),
        pytest.param([0, 0], [0, 5], "predictions hold 0 to 5", id="prediction"),
        pytest.param([0, 0], [0, -1], "predictions hold -1 to 0", id="negative"),
    ],
)
def test_bad_input_is_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        matrix_of(labels, predictions)
