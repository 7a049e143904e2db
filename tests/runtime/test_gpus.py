"""The GPU table: names in any spelling, figures that fit together, limits and advice."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InvalidInput
from runtime.machine.gpus import GPUS, gpu_named, parse_device, sm_of
from runtime.machine.support import advice_for, limits_of

GFLOP = 48.1  # ESNet at 512x1024, 2 x 24.05 GMAC


@given(name=st.sampled_from(sorted(GPUS)), data=st.data())
def test_a_name_is_found_however_it_is_written(name, data):
    written = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in name)
    prefix = data.draw(st.sampled_from(["", "NVIDIA ", "NVIDIA GeForce ", "geforce-"]))
    gap = data.draw(st.sampled_from([" ", "", "_", "-", "  "]))
    assert gpu_named(prefix + written.replace(" ", gap)).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA GeForce GTX 1080 Ti", "GTX 1080 Ti"),
        ("1080ti", "GTX 1080 Ti"),
        ("3060", "RTX 3060"),
        ("GeForce GTX 1060 6GB", "GTX 1060"),
        ("GeForce GTX 1060 3GB", "GTX 1060 3GB"),
        ("NVIDIA GeForce GTX 1660 SUPER", "GTX 1660 Super"),
        ("NVIDIA TITAN Xp", "Titan Xp"),
        ("NVIDIA GeForce RTX 5060 Ti 16GB", "RTX 5060 Ti"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla V100-PCIE-32GB", "V100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("H100 SXM", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("Orin Nano", "Jetson Orin Nano"),
    ],
)
def test_the_names_that_drivers_and_people_use_are_known(text, name):
    assert gpu_named(text).name == name


@pytest.mark.parametrize("text", ["", "gtx", "RTX 3060 Laptop GPU", "Radeon RX 580", "80GB"])
def test_what_is_no_name_of_ours_is_no_gpu(text):
    with pytest.raises(InvalidInput, match="unknown GPU"):
        gpu_named(text)


@pytest.mark.parametrize(
    ("device", "index"), [("cuda:1", 1), ("CUDA:0", 0), ("cuda", 0), ("2", 2), (3, 3)]
)
def test_a_device_is_a_number_in_cudas_order(device, index):
    assert parse_device(device) == index


@pytest.mark.parametrize("device", ["", "cpu", "cuda:", "cuda:x", "-1", -1, "1.5", "gpu1"])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(InvalidInput, match="is no GPU"):
        parse_device(device)


def test_an_unknown_gpu_is_answered_with_what_comes_near():
    with pytest.raises(InvalidInput, match="unknown GPU 'RTX 3065'") as caught:
        gpu_named("RTX 3065")
    assert "RTX 3060" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "sm"),
    [
        ("sm_86", (8, 6)),
        ("SM 8.6", (8, 6)),
        ("8.6", (8, 6)),
        ("86", (8, 6)),
        ("sm120", (12, 0)),
        ("12.1", (12, 1)),
        ("NVIDIA GeForce GTX 1080 Ti", (6, 1)),
        ("NVIDIA H200", (9, 0)),
    ],
)
def test_a_compute_capability_is_read_or_looked_up(text, sm):
    assert sm_of(text) == sm


@pytest.mark.parametrize("text", ["980", "sm_980", "20.1"])
def test_a_number_that_is_no_compute_capability_is_refused(text):
    with pytest.raises(InvalidInput, match=f"unknown GPU '{text}'"):
        sm_of(text)


def test_what_is_neither_gets_both_forms_as_a_hint():
    with pytest.raises(InvalidInput, match="unknown GPU 'sm_'") as caught:
        sm_of("sm_")
    assert caught.value.hint.endswith("or a compute capability such as sm_86")


def test_no_two_names_read_alike():
    assert len({name.lower().replace(" ", "") for name in GPUS}) == len(GPUS)


@pytest.mark.parametrize("name", GPUS)
def test_the_figures_of_a_card_are_of_the_right_size(name):
    spec = GPUS[name]
    assert 1 < spec.fp32_tflops < 120
    assert 100 < spec.bandwidth_gb_s < 5000
    assert 3 <= spec.memory_gb <= 141
    assert spec.int8_tops >= 4 * spec.fp32_tflops


@pytest.mark.parametrize("name", GPUS)
def test_every_row_says_where_it_comes_from(name):
    assert "NVIDIA" in GPUS[name].source
    assert "docs.nvidia.com" in limits_of(GPUS[name].sm).source


@pytest.mark.parametrize(
    ("name", "fp32", "fp16", "int8"),
    [
        ("GTX 1080 Ti", 11.3, 0.177, 45.4),
        ("GTX 1660 Ti", 5.4, 10.9, 21.7),
        ("V100", 15.7, 125, 62.7),
        ("T4", 8.1, 65, 130),
        ("Titan RTX", 16.3, 130.5, 261),
        ("RTX 3090", 35.6, 142, 285),
        ("A10", 31.2, 125, 250),
        ("RTX 4090", 82.6, 330, 661),
        ("L4", 30.3, 121, 242),
        ("L40S", 91.6, 362, 733),
        ("RTX 5080", 56.3, 225, 450),
        ("A100", 19.5, 312, 624),
        ("H100", 66.9, 989, 1979),
        ("H100 PCIe", 51.2, 756, 1513),
        ("Jetson AGX Orin", 5.3, 42.5, 85),
        ("Jetson Orin Nano", 2.1, 16.7, 33.5),
    ],
)
def test_published_peaks_come_out(name, fp32, fp16, int8):
    spec = GPUS[name]
    assert spec.fp32_tflops == pytest.approx(fp32, rel=0.02)
    assert spec.fp16_tflops == pytest.approx(fp16, rel=0.02)
    assert spec.int8_tops == pytest.approx(int8, rel=0.02)


def test_half_precision_is_slow_on_pascal():
    pascal = [spec for spec in GPUS.values() if spec.sm == (6, 1)]
    assert {spec.fp16_tflops / spec.fp32_tflops for spec in pascal} == {1 / 64}


def test_the_roofline_of_the_published_card_in_fp32():
    assert 4.0 < GFLOP / GPUS["GTX 1080 Ti"].fp32_tflops < 4.6  # ms


def test_the_roofline_of_the_published_card_in_int8():
    assert 1.0 < GFLOP / GPUS["GTX 1080 Ti"].int8_tops < 1.15  # ms


@pytest.mark.parametrize(
    ("sm", "tensorrt", "python", "driver"),
    [
        ((6, 1), "8.6.1", "3.11", "R580"),
        ((7, 0), "10.4", "3.12", "R580"),
        ((7, 5), "11.4", "3.14", "newest"),
        ((9, 0), "11.4", "3.14", "newest"),
    ],
)
def test_what_still_supports_a_card(sm, tensorrt, python, driver):
    limits = limits_of(sm)
    assert (limits.tensorrt, limits.python, limits.driver) == (tensorrt, python, driver)


@pytest.mark.parametrize(
    ("sm", "runs"),
    [
        ((6, 1), False),
        ((7, 0), False),
        ((7, 5), True),
        ((8, 6), True),
        ((8, 7), False),
        ((8, 9), True),
        ((9, 0), False),
        ((10, 0), False),
        ((12, 0), True),
        ((12, 1), True),
    ],
)
def test_tensorrt_rtx_does_not_run_everywhere(sm, runs):
    assert limits_of(sm).runs_rtx is runs


@pytest.mark.parametrize(
    ("sm", "like"), [((13, 0), (12, 1)), ((7, 2), (7, 0)), ((5, 2), (6, 0))], ids=str
)
def test_what_is_not_in_the_table_has_its_neighbours_limits_and_a_note(sm, like):
    limits = limits_of(sm)
    assert limits.tensorrt == limits_of(like).tensorrt
    assert f"SM {sm[0]}.{sm[1]} is not in our table" in limits.note


@pytest.mark.parametrize(
    ("sm", "precision", "words"),
    [
        ((6, 0), "int8", "use FP16 or FP32"),
        ((6, 1), "fp16", "FP16 runs at 1/64 of the FP32 rate on SM 6.1: use INT8, the fast choice"),
        ((7, 0), "int8", "no INT8 tensor cores"),
    ],
)
def test_a_poor_precision_is_advised_against(sm, precision, words):
    assert words in advice_for(sm, precision)


@pytest.mark.parametrize(
    ("sm", "precision"),
    [((6, 1), "fp32"), ((6, 1), "int8"), ((7, 0), "fp16"), ((8, 6), "fp16"), ((8, 6), "int8")],
)
def test_a_good_precision_needs_no_advice(sm, precision):
    assert advice_for(sm, precision) is None


def test_the_table_needs_the_standard_library_alone():
    code = "import runtime.machine.support, sys; print({'numpy', 'torch', 'onnx', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
