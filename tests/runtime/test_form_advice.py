"""An artefact for another engine gets the command that exports the right one."""

from dataclasses import replace

import pytest

from runtime.artefact.advice import form_advice


@pytest.fixture
def card_made_by(card):
    """The small card, for TensorRT, with the command line that made it."""
    return lambda command: replace(card, name="camvid", created={"command": command})


@pytest.mark.parametrize("name", ["tensorrt", "openvino", "onnxruntime"])
def test_the_engines_own_form_needs_no_advice(card, name):
    assert form_advice(replace(card, optimized_for=name), name) is None


def test_another_engine_that_the_form_suits_needs_no_advice(card):
    suited = replace(card, optimized_for="openvino", form={"suits": ["openvino", "onnxruntime"]})
    assert form_advice(suited, "onnxruntime") is None


def test_null_needs_no_advice(card):
    assert form_advice(card, "null") is None


def test_both_engines_are_named(card):
    assert "optimized for tensorrt; for openvino: " in form_advice(card, "openvino")


@pytest.mark.parametrize(
    ("command", "advised"),
    [
        pytest.param("esnet-export to-onnx w.pth", "esnet-export to-onnx w.pth", id="bare"),
        pytest.param(
            "esnet-export to-onnx w.pth --optimize-for tensorrt --size 64x128 -o out.onnx",
            "esnet-export to-onnx w.pth --size 64x128",
            id="apart",
        ),
        pytest.param(
            "esnet-export to-onnx --output-file=a.onnx w.pth --optimize-for=tensorrt --fp16",
            "esnet-export to-onnx w.pth --fp16",
            id="with-equals",
        ),
        pytest.param(
            "esnet-export to-onnx w.pth -oout.onnx --output-file b.onnx",
            "esnet-export to-onnx w.pth",
            id="joined-and-long",
        ),
        pytest.param(
            "esnet-export to-onnx w.pth --output logits --no-verify",
            "esnet-export to-onnx w.pth --output logits --no-verify",
            id="output-kind-is-kept",
        ),
        pytest.param(
            "esnet-export to-onnx 'my weights.pth' -o 'my model.onnx'",
            "esnet-export to-onnx 'my weights.pth'",
            id="quoted",
        ),
        pytest.param(
            "esnet-export to-onnx w.pth -o", "esnet-export to-onnx w.pth", id="value-missing"
        ),
        pytest.param("", "esnet-export to-onnx camvid --size 64x128", id="no-command"),
        pytest.param(
            "esnet-export to-onnx joe's.pth",
            "esnet-export to-onnx camvid --size 64x128",
            id="lone-quote",
        ),
    ],
)
def test_the_command_is_the_first_one_for_the_other_engine(card_made_by, command, advised):
    advice = form_advice(card_made_by(command), "openvino")
    assert advice.endswith(f"for openvino: {advised} --optimize-for openvino")


def test_a_card_without_a_command_gets_a_general_one(card):
    advice = form_advice(replace(card, name="camvid", created={}), "onnxruntime")
    assert advice.endswith("esnet-export to-onnx camvid --size 64x128 --optimize-for onnxruntime")
