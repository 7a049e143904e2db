"""Which backend opens an artefact, and what is said when none can."""

import sys
import types
from dataclasses import replace

import pytest

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import EngineRecord, write_engine
from runtime.backend import AUTO, choose_backend, installed_backends, open_backend
from runtime.errors import BackendUnavailable, EsnetError, InvalidInput, ModelFileError
from runtime.trials import Candidate, Trial

OPENVINO, BF16 = Candidate("openvino", "fp32"), Candidate("openvino", "bf16")
ONNXRUNTIME, CUDA = Candidate("onnxruntime", "fp32"), Candidate("onnxruntime-cuda", "fp32")


@pytest.fixture
def measured(monkeypatch):
    """Give this machine bf16, and the results of a trial; returns the candidates of each trial."""
    monkeypatch.setattr("runtime.backend.has_bf16", lambda: True)
    trials = []

    def set_times(times_ms, notes=()):
        def run_trial(probe, candidates, open_probe):
            trials.append((probe, candidates))
            return Trial(times_ms, notes)

        monkeypatch.setattr("runtime.backend.run_trial", run_trial)
        return trials

    return set_times


def choice(path, *options):
    chosen = choose_backend(path, *options)
    return chosen.backend, chosen.precision


def test_the_fastest_installed_backend_is_the_default(make_artefact):
    with open_backend(make_artefact()) as backend:
        assert backend.name == "openvino"


def test_the_next_one_is_the_default_without_it(make_artefact, hide_library):
    hide_library("openvino")
    with open_backend(make_artefact()) as backend:
        assert backend.name == "onnxruntime"


def test_null_is_never_chosen(hide_library):
    hide_library("openvino", "onnxruntime")
    assert installed_backends() == ()


def test_without_any_backend_the_pip_line_is_given(make_artefact, hide_library):
    hide_library("openvino", "onnxruntime")
    with pytest.raises(BackendUnavailable, match="no backend is installed") as refusal:
        open_backend(make_artefact())
    assert refusal.value.hint.startswith("pip install 'esnet-deploy[cpu]'")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_missing_library_is_named_with_its_pip_line(make_artefact, hide_library, name):
    hide_library(name)
    with pytest.raises(BackendUnavailable, match=f"{name}, which is not installed") as refusal:
        open_backend(make_artefact(), name)
    assert refusal.value.hint == "pip install 'esnet-deploy[cpu]'"
    assert refusal.value.exit_code == 3


@pytest.mark.parametrize(
    ("sm", "install"),
    [
        pytest.param("6.1", "tensorrt_bindings==8.6.1", id="pascal"),
        pytest.param("7.0", "tensorrt-cu12==10.4", id="volta"),
        pytest.param("8.6", "pip install 'esnet-deploy[gpu]'", id="ampere"),
    ],
)
def test_a_missing_tensorrt_is_installed_for_the_engines_gpu(
    make_artefact, hide_library, tmp_path, sm, install
):
    hide_library("tensorrt", "tensorrt_bindings")
    path, card = tmp_path / "a.engine", ModelCard.from_file(make_artefact())
    record = EngineRecord(
        card=card,
        plan_sha256="0" * 64,
        onnx={"name": "a.onnx", "sha256": "0" * 64},
        tensorrt={"kind": "tensorrt", "version": "8.6.1"},
        target={"sms": [sm]},
        precision={"asked": "fp32", "built": {}},
        profile=card.batch,
        kernels={},
        build={"seconds": 1.0, "command": "esnet-export build-engine a.onnx"},
    )
    write_engine(path, b"plan", record)
    with pytest.raises(BackendUnavailable, match="needs tensorrt, which is not") as refusal:
        open_backend(path)
    assert install in refusal.value.hint


def test_a_library_that_does_not_load_is_unavailable(make_artefact, monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.delitem(sys.modules, "runtime.backends.onnxruntime", raising=False)
    with pytest.raises(BackendUnavailable, match=r"does not load: libgomp\.so\.1 is missing"):
        open_backend(make_artefact(), "onnxruntime")


def test_the_remains_of_two_onnxruntimes_are_recognised(make_artefact, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", _empty_module("onnxruntime"))
    monkeypatch.delitem(sys.modules, "runtime.backends.onnxruntime", raising=False)
    with pytest.raises(BackendUnavailable, match="onnxruntime is broken") as refusal:
        open_backend(make_artefact(), "onnxruntime")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in refusal.value.hint


def test_an_unknown_backend_is_answered_with_the_known_ones(make_artefact):
    with pytest.raises(InvalidInput, match="unknown backend 'tensorflow'") as refusal:
        open_backend(make_artefact(), "tensorflow")
    assert refusal.value.hint.startswith("backends: openvino, onnxruntime, null")


def test_the_file_is_looked_at_before_the_backend(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        open_backend(tmp_path / "none.onnx", "tensorflow")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        pytest.param(InvalidInput, ValueError, id="invalid-input"),
        pytest.param(ModelFileError, ValueError, id="model-file"),
        pytest.param(BackendUnavailable, ImportError, id="backend-unavailable"),
    ],
)
def test_errors_are_caught_as_ours_and_as_the_builtin(error, builtin):
    assert issubclass(error, EsnetError)
    assert issubclass(error, builtin)


CHECKED = {"parity": {"equal_labels_bf16": 0.9996}}
INT8 = {"precision": "int8", "quantization": {"backends": ["onnxruntime"]}}


@pytest.mark.parametrize(
    ("times_ms", "chosen"),
    [
        pytest.param({OPENVINO: 2, BF16: 1, ONNXRUNTIME: 3}, BF16, id="bf16"),
        pytest.param({OPENVINO: 1, BF16: 2, ONNXRUNTIME: 3}, OPENVINO, id="fp32"),
        pytest.param({OPENVINO: 2, BF16: 3, ONNXRUNTIME: 1}, ONNXRUNTIME, id="other-backend"),
        pytest.param({OPENVINO: 2, ONNXRUNTIME: 1}, ONNXRUNTIME, id="one-failed"),
    ],
)
def test_auto_takes_the_fastest(measured, artefact_with, times_ms, chosen):
    measured(times_ms)
    assert choice(artefact_with(**CHECKED)) == chosen


def test_open_backend_opens_the_choice(measured, artefact_with):
    measured({OPENVINO: 2, BF16: 3, ONNXRUNTIME: 1})
    with open_backend(artefact_with(**CHECKED), AUTO, precision=AUTO) as backend:
        assert (backend.name, backend.precision) == ONNXRUNTIME


def test_one_of_the_two_may_be_given(measured, artefact_with):
    measured({OPENVINO: 3, BF16: 2, ONNXRUNTIME: 1})
    path = artefact_with(**CHECKED)
    assert choice(path, "openvino", AUTO) == BF16
    assert choice(path, AUTO, "bf16") == BF16
    assert choice(path, AUTO, None) == ONNXRUNTIME


@pytest.mark.parametrize(
    "parity",
    [
        pytest.param({}, id="unchecked"),
        pytest.param({"equal_labels_bf16": None}, id="not-possible"),
        pytest.param({"equal_labels_bf16": 0.98}, id="too-different"),
    ],
)
def test_bf16_needs_labels_that_the_export_has_checked(measured, artefact_with, parity):
    measured({OPENVINO: 3, BF16: 1, ONNXRUNTIME: 4})
    path = artefact_with(parity=parity)
    assert choice(path) == OPENVINO
    assert choice(path, AUTO, "bf16") == BF16


def test_bf16_is_no_candidate_without_its_arithmetic(measured, artefact_with, monkeypatch):
    trials = measured({OPENVINO: 1, ONNXRUNTIME: 2})
    monkeypatch.setattr("runtime.backend.has_bf16", lambda: False)
    choice(artefact_with(**CHECKED))
    assert trials == [("fp32", (OPENVINO, ONNXRUNTIME))]


@pytest.mark.parametrize(
    ("form", "time_ms", "chosen"),
    [
        pytest.param("onnxruntime", 1.09, ONNXRUNTIME, id="close-and-suits"),
        pytest.param("onnxruntime", 1.11, OPENVINO, id="not-close"),
        pytest.param("tensorrt", 1.09, OPENVINO, id="suits-none"),
    ],
)
def test_between_close_times_the_form_decides(measured, artefact_with, form, time_ms, chosen):
    measured({OPENVINO: 1, ONNXRUNTIME: time_ms})
    assert choice(artefact_with(optimized_for=form, form={})) == chosen


def test_without_a_choice_nothing_is_measured(measured, artefact_with, hide_library):
    trials = measured({})
    hide_library("openvino")
    assert choice(artefact_with()) == ONNXRUNTIME
    assert choice(artefact_with(), "null", AUTO) == ("null", None)
    assert trials == []


def test_a_gpu_that_runs_is_preferred(measured, artefact_with, monkeypatch):
    monkeypatch.setattr("runtime.backend.version_of", lambda name: "1.31")
    monkeypatch.setattr("runtime.backend.nvidia_gpus", lambda: ("a GPU",))
    trials = measured({OPENVINO: 1, ONNXRUNTIME: 2, CUDA: 9})
    assert choice(artefact_with()) == CUDA
    assert choice(artefact_with(precision="fp16")) == ("onnxruntime-cuda", "fp16")
    assert CUDA in trials[0][1]


def test_a_gpu_that_does_not_run_is_not(measured, artefact_with, monkeypatch):
    monkeypatch.setattr("runtime.backend.version_of", lambda name: "1.31")
    monkeypatch.setattr("runtime.backend.nvidia_gpus", lambda: ("a GPU",))
    measured({OPENVINO: 1, ONNXRUNTIME: 2}, ("onnxruntime-cuda fp32 does not run here: no cuDNN",))
    chosen = choose_backend(artefact_with())
    assert chosen.backend == "openvino"
    assert chosen.notes == ("onnxruntime-cuda fp32 does not run here: no cuDNN",)


def test_a_backend_that_failed_the_check_is_skipped_with_a_line(artefact_with):
    chosen = choose_backend(artefact_with(**INT8))
    assert (chosen.backend, chosen.precision) == ("onnxruntime", "int8")
    (note,) = chosen.notes
    assert note.startswith("openvino is skipped: it failed the label check")
    assert "\n" not in note


def test_python_skips_it_too(artefact_with):
    path = artefact_with(**{**INT8, "precision": "fp32"})  # the graph is not quantized
    with open_backend(path) as backend:
        assert backend.name == "onnxruntime"


@pytest.mark.parametrize("precision", [None, AUTO])
def test_naming_it_is_an_error_with_the_fix(artefact_with, precision):
    with pytest.raises(InvalidInput, match="openvino did not pass the label check") as refusal:
        open_backend(artefact_with(**INT8), "openvino", precision=precision)
    assert refusal.value.exit_code == 2
    assert refusal.value.hint.startswith(
        "--backend onnxruntime, or for CPUs: esnet-export quantize"
    )
    assert "--allow-mismatch" in refusal.value.hint


def test_allowing_the_mismatch_runs_it(artefact_with):
    path = artefact_with(**{**INT8, "precision": "fp32"})
    with open_backend(path, "openvino", allow_mismatch=True) as backend:
        assert backend.name == "openvino"


@pytest.mark.parametrize("name", [None, AUTO])
def test_if_no_installed_backend_matches_there_is_nothing_to_open(
    artefact_with, hide_library, name
):
    hide_library("onnxruntime")
    with pytest.raises(InvalidInput, match=r"openvino did not pass .*, onnxruntime did$"):
        open_backend(artefact_with(**INT8), name)


def test_the_gpu_backend_of_onnxruntime_counts_as_onnxruntime(card):
    int8 = replace(card, **INT8)
    assert int8.matches("onnxruntime-cuda")
    assert not replace(int8, quantization={"backends": ["openvino"]}).matches("onnxruntime-cuda")


def test_the_explanation_lists_the_times(measured, artefact_with):
    measured({OPENVINO: 2, BF16: 1, ONNXRUNTIME: 3})
    lines = choose_backend(artefact_with(**CHECKED)).as_text().splitlines()
    assert lines[0].startswith("openvino bf16: chosen by")
    assert [line.split() for line in lines[1:]] == [
        ["openvino", "bf16", "1.00", "ms"],
        ["openvino", "fp32", "2.00", "ms"],
        ["onnxruntime", "fp32", "3.00", "ms"],
    ]


def test_the_explanation_of_a_single_candidate(artefact_with):
    assert choose_backend(artefact_with(**INT8)).as_text() == "onnxruntime int8: the only candidate"


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "null"])
def test_a_device_is_for_gpus(artefact_with, name):
    with pytest.raises(InvalidInput, match=f"'{name}' does not run on a GPU, device 'cuda:1'"):
        open_backend(artefact_with(**CHECKED), name, device="cuda:1")


@pytest.mark.parametrize("name", [None, AUTO])
def test_a_device_runs_an_onnx_file_in_onnxruntime_cuda(measured, artefact_with, name):
    """Here without CUDA; no trial asks for other backends."""
    with pytest.raises(BackendUnavailable, match="CUDA provider"):
        open_backend(artefact_with(**CHECKED), name, precision=name, device=1)
    choice = choose_backend(artefact_with(**CHECKED), device=1)
    assert (choice.backend, choice.precision) == ("onnxruntime-cuda", None)


@pytest.mark.parametrize("device", ["cpu", "x"])
def test_a_device_that_is_none_is_bad_input(artefact_with, device):
    with pytest.raises(InvalidInput, match=f"device '{device}' is no GPU"):
        open_backend(artefact_with(**CHECKED), "onnxruntime-cuda", device=device)


def _empty_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(name=name)
    return module
