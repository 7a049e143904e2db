"""OpenVINO and ONNX Runtime: the arithmetic that really runs, and graphs that they cannot open."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from export.metadata import with_card
from runtime.artefact.card import ModelCard
from runtime.backend import open_backend
from runtime.errors import InvalidInput, ModelFileError
from runtime.machine.machine import cpu_flags

ENGINES = pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
BF16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & cpu_flags(), reason="this CPU has no bf16 arithmetic"
)


def infer(path, name, batch, **options):
    with open_backend(path, name, **options) as backend:
        return backend.infer(batch)[0]


@pytest.fixture
def corrupt(make_artefact, tmp_path):
    """Save the artefact with another card, or with another graph under its card."""

    def save(change_card=lambda card: card, change_graph=lambda model: None):
        model = onnx.load(make_artefact())
        card = ModelCard.from_file(make_artefact())
        change_graph(model)
        path = tmp_path / "corrupt.onnx"
        onnx.save(with_card(model, change_card(card)), path)
        return path

    return save


def test_openvino_fp32_computes_in_fp32(make_artefact, frame):
    path = make_artefact(outputs=("logits",))
    expected = infer(path, "onnxruntime", frame[None])
    np.testing.assert_allclose(infer(path, "openvino", frame[None]), expected, atol=1e-3)


@BF16
def test_openvino_bf16_computes_in_bf16(make_artefact, frame):
    path = make_artefact(outputs=("logits",))
    exact = infer(path, "openvino", frame[None])
    rounded = infer(path, "openvino", frame[None], precision="bf16")
    assert 1e-2 < np.abs(rounded - exact).max() < 0.5 * np.abs(exact).max()


@BF16
def test_openvino_reports_bf16(make_artefact):
    with open_backend(make_artefact(), "openvino", precision="bf16") as backend:
        assert backend.precision == "bf16"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param("openvino", "fp16", id="openvino-fp16"),
        pytest.param("onnxruntime", "fp16", id="onnxruntime-fp16"),
        pytest.param("onnxruntime", "bf16", id="onnxruntime-bf16"),
    ],
)
def test_a_cpu_refuses_what_it_has_no_arithmetic_for(make_artefact, name, precision):
    with pytest.raises(InvalidInput, match=f"{name} cannot run {precision} on .*offers fp32"):
        open_backend(make_artefact(precision="fp16"), name, precision=precision)


@ENGINES
def test_an_fp16_artefact_runs_and_reports_fp32(make_artefact, name):
    with open_backend(make_artefact(precision="fp16"), name) as backend:
        assert backend.precision == "fp32"


@ENGINES
def test_an_fp16_artefact_gives_nearly_the_fp32_labels(make_artefact, name, frame):
    half = infer(make_artefact(precision="fp16"), name, frame[None])
    full = infer(make_artefact(), name, frame[None])
    assert np.mean(half == full) > 0.85


def test_openvino_takes_the_number_of_threads(make_artefact):
    with open_backend(make_artefact(), "openvino", threads=1) as backend:
        compiled = backend._request(1).get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_onnxruntime_takes_the_number_of_threads(make_artefact):
    with open_backend(make_artefact(), "onnxruntime", threads=2) as backend:
        assert backend._session.get_session_options().intra_op_num_threads == 2


@ENGINES
def test_a_graph_that_the_engine_cannot_read_is_a_model_file_error(corrupt, name):
    def forget_a_weight(model):
        del model.graph.initializer[0]

    with pytest.raises(ModelFileError, match=r"cannot open .*corrupt\.onnx: "):
        open_backend(corrupt(change_graph=forget_a_weight), name)


@ENGINES
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"size_hw": (72, 128)},
            r"no frames \(N, 72, 128, 3\) among frames \(N, 64, 128, 3\)",
            id="size",
        ),
        pytest.param({"outputs": ("labels", "confidence")}, "no confidence", id="outputs"),
        pytest.param({"input": "tensor"}, "no tensor", id="input"),
    ],
)
def test_a_graph_that_does_not_fit_its_card_is_refused(corrupt, name, changes, message):
    path = corrupt(change_card=lambda card: replace(card, **changes))
    with pytest.raises(ModelFileError, match=f"does not match its card: {message}"):
        open_backend(path, name)


def test_a_signal_is_survived_after_models_were_closed_in_any_order(make_artefact):
    code = (
        "import os, signal, sys; from runtime.backend import open_backend\n"
        "first, second = (open_backend(sys.argv[1], 'openvino') for _ in range(2))\n"
        "first.close(); second.close()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    command = [sys.executable, "-c", code, str(make_artefact())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
