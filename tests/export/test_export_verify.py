"""Tolerances of the parity check."""

from __future__ import annotations

import pytest

from export.errors import ParityError
from export.parity import Parity, require_parity

GOOD = {
    "max_abs_logit_diff": 1e-4,
    "max_abs_logit": 10.0,
    "equal_labels": 1.0,
    "num_frames": 3,
    "frames": "generated street scenes",
    "backend": "onnxruntime",
}


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        pytest.param("fp32", {}, id="fp32"),
        pytest.param("fp32", {"max_abs_logit_diff": 9e-3}, id="fp32-difference-by-size-of-logits"),
        pytest.param("fp32", {"equal_labels": 0.9995}, id="fp32-few-labels"),
        pytest.param("fp16", {"max_abs_logit_diff": 0.2, "equal_labels": 0.995}, id="fp16"),
    ],
)
def test_rounding_passes(precision, changes):
    require_parity(Parity(**GOOD | changes), precision)


@pytest.mark.parametrize(
    ("precision", "changes", "message"),
    [
        pytest.param(
            "fp32", {"max_abs_logit_diff": 0.2}, r"differ by 0\.2, allowed 0\.01", id="fp32"
        ),
        pytest.param(
            "fp32",
            {"max_abs_logit_diff": 5e-3, "max_abs_logit": 0.1},
            r"differ by 0\.005, allowed 0\.001",
            id="fp32-small-logits",
        ),
        pytest.param("fp32", {"max_abs_logit_diff": float("nan")}, "differ by nan", id="nan"),
        pytest.param(
            "fp32",
            {"equal_labels": 0.99},
            r"99\.000% of labels are equal, required 99\.9%",
            id="labels",
        ),
        pytest.param("fp16", {"max_abs_logit_diff": 0.5}, r"allowed 0\.3", id="fp16"),
        pytest.param("fp16", {"equal_labels": 0.98}, r"required 99\.0%", id="fp16-labels"),
    ],
)
def test_more_than_rounding_is_refused_with_the_figures(precision, changes, message):
    with pytest.raises(ParityError, match=message):
        require_parity(Parity(**GOOD | changes), precision)


def test_refusal_of_fp16_suggests_going_without():
    with pytest.raises(ParityError) as caught:
        require_parity(Parity(**GOOD | {"equal_labels": 0.5}), "fp16")
    assert "without --fp16" in caught.value.hint


@pytest.mark.parametrize(
    ("share", "expected"),
    [pytest.param(1.0, "100 %", id="all"), pytest.param(0.9999593, "99.9959 %", id="nearly-all")],
)
def test_text_says_100_percent_only_of_all_labels(share, expected):
    text = Parity(**GOOD | {"equal_labels": share}).as_text()
    assert f"equal labels {expected}, 3 generated street scenes, on onnxruntime" in text


def test_text_gives_the_labels_in_bf16():
    text = Parity(**GOOD, equal_labels_bf16=0.99957).as_text()
    assert "equal labels 100 % (99.96 % in bf16), 3 generated" in text
