"""Which backend opens an artefact, and what is said when none can."""

import sys
import types

import pytest

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import EngineRecord, write_engine
from runtime.backend import installed_backends, open_backend
from runtime.errors import BackendUnavailable, EsnetError, InvalidInput, ModelFileError


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
        plan_sha256="",
        onnx={},
        tensorrt={"kind": "tensorrt", "version": "8.6.1"},
        target={"sms": [sm]},
        precision={},
        profile=card.batch,
        kernels={},
        build={},
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


def _empty_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(name=name)
    return module
