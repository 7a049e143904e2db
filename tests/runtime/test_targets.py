"""The GPU table: names found however they are written, figures that fit together, advice that is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import targets
from runtime.errors import InvalidInput
from runtime.targets import (
    TARGETS,
    advice_for,
    gpus_at_hand,
    limits_of,
    sm_of,
    support_text,
    target_named,
)

GFLOP = 48.1  # ESNet at 512x1024, 2 x 24.05 GMAC


@given(name=st.sampled_from(sorted(TARGETS)), data=st.data())
def test_a_name_is_found_however_it_is_written(name, data):
    written = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in name)
    prefix = data.draw(st.sampled_from(["", "NVIDIA ", "NVIDIA GeForce ", "geforce-"]))
    assert (
        target_named(prefix + written.replace(" ", data.draw(st.sampled_from([" ", "", "_"])))).name
        == name
    )


@pytest.mark.parametrize(
    ("text", "sm"),
    [
        ("sm_86", (8, 6)),
        ("8.6", (8, 6)),
        ("86", (8, 6)),
        ("sm120", (12, 0)),
        ("NVIDIA GeForce GTX 1080 Ti", (6, 1)),
        ("Tesla T4", (7, 5)),
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA H200", (9, 0)),
    ],
)
def test_a_compute_capability_is_read_or_looked_up(text, sm):
    assert sm_of(text) == sm


def test_an_unknown_gpu_is_answered_with_what_comes_near():
    with pytest.raises(InvalidInput, match="unknown GPU 'RTX 3065'") as caught:
        target_named("RTX 3065")
    assert "RTX 3060" in caught.value.hint


@pytest.mark.parametrize("name", TARGETS)
def test_the_figures_of_a_card_are_of_the_right_size(name):
    target = TARGETS[name]
    assert 0.5 < target.fp32_tflops < 120
    assert 30 < target.bandwidth_gb_s < 5000
    assert target.int8_tops >= 4 * target.fp32_tflops
    assert limits_of(target.sm).source


@pytest.mark.parametrize(
    ("name", "fp32", "fp16", "int8"),
    [
        ("GTX 1080 Ti", 11.3, 0.177, 45.4),
        ("T4", 8.1, 65, 130),
        ("RTX 3090", 35.6, 142, 285),
        ("RTX 4090", 82.6, 330, 661),
        ("A100", 19.5, 312, 624),
        ("H100", 66.9, 989, 1979),
    ],
)
def test_known_peaks_come_out(name, fp32, fp16, int8):
    target = TARGETS[name]
    assert target.fp32_tflops == pytest.approx(fp32, rel=0.02)
    assert target.fp16_tflops == pytest.approx(fp16, rel=0.02)
    assert target.int8_tops == pytest.approx(int8, rel=0.02)


def test_the_roofline_of_the_published_card():
    target = TARGETS["GTX 1080 Ti"]
    assert GFLOP / target.fp32_tflops == pytest.approx(4.24, abs=0.05)
    assert GFLOP / target.int8_tops == pytest.approx(1.06, abs=0.02)


@pytest.mark.parametrize("sm", [(6, 1), (7, 0), (8, 7), (9, 0)])
def test_tensorrt_rtx_does_not_run_everywhere(sm):
    assert not limits_of(sm).runs_rtx


def test_a_newer_card_than_the_table_has_the_newest_limits():
    assert limits_of((13, 0)).tensorrt == limits_of((12, 0)).tensorrt


def test_pascal_is_warned_of_half_precision_and_nobody_else_is():
    assert (
        advice_for((6, 1), "fp16")
        == "FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8 or FP32"
    )
    assert advice_for((6, 1), "fp32") is None
    assert advice_for((8, 6), "fp16") is None


@pytest.mark.parametrize(
    ("name", "sm", "words"),
    [
        ("GTX 1080 Ti", (6, 1), ["TensorRT 8.6.1 at most", "Python 3.11", "1/64", "gtx10xx"]),
        ("RTX 3060", (8, 6), ["TensorRT 11.4", "esnet-deploy[gpu]", "esnet-deploy[rtx]"]),
        ("V100", (7, 0), ["TensorRT 10.4", "tensorrt-cu12==10.4.*"]),
    ],
)
def test_the_doctors_line_says_what_to_install(name, sm, words):
    line = support_text(name, sm)
    assert all(word in line for word in words)


def test_no_rtx_is_promised_to_an_h100():
    assert "rtx" not in support_text("H100", (9, 0)).lower()


@pytest.mark.parametrize(
    ("lines", "capabilities", "found"),
    [
        (
            ("NVIDIA GeForce RTX 3060, 580.65, 12288 MiB",),
            ("8.6",),
            (("NVIDIA GeForce RTX 3060", (8, 6)),),
        ),
        (("NVIDIA GTX 1080 Ti, 470.1, 11178 MiB",), (), (("NVIDIA GTX 1080 Ti", (6, 1)),)),
        (("NVIDIA X9, 600.1, 1 MiB",), ("13.1",), (("NVIDIA X9", (13, 1)),)),
        ((), (), ()),
    ],
    ids=["told", "old-driver", "unknown-name", "none"],
)
def test_the_gpus_of_this_machine(monkeypatch, lines, capabilities, found):
    monkeypatch.setattr(targets, "nvidia_gpus", lambda: lines)
    monkeypatch.setattr(targets, "gpu_capabilities", lambda: capabilities)
    assert gpus_at_hand() == found
