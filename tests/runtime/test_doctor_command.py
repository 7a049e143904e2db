"""``esnet-doctor`` as its user meets it."""

import json
import sys

from tests.conftest import run_command


def test_the_text_names_what_runs_and_what_is_installed():
    done = run_command("esnet-doctor")
    assert done.returncode == 0, done.stderr
    assert "ok  run on CPU: openvino" in done.stdout
    assert "installed: numpy " in done.stdout
    assert done.stderr == ""


def test_the_json_is_json_alone(invoke):
    done = invoke("esnet-doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"machine", "installed", "checks", "warnings", "gpus", "can_run"}


def test_a_card_can_be_asked_about_that_is_not_here(invoke):
    done = invoke("esnet-doctor", "--gpu", "GTX 1080 Ti")
    assert done.returncode == 0, done.stderr
    assert "gpu: GTX 1080 Ti (SM 6.1): TensorRT 8.6.1 at most" in done.stdout


def test_an_unknown_card_is_bad_input_with_a_hint(invoke):
    done = invoke("esnet-doctor", "--gpu", "RTX 3065")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: unknown GPU 'RTX 3065'"
    assert "RTX 3060" in done.stderr.splitlines()[1]


def test_without_a_backend_it_ends_with_3_and_the_pip_line(invoke, monkeypatch):
    for library in ("openvino", "onnxruntime", "torch"):
        monkeypatch.setitem(sys.modules, library, None)
    done = invoke("esnet-doctor")
    assert done.returncode == 3
    assert "NO  run on CPU: openvino" in done.stdout
    assert "no backend can run a model here: pip install 'esnet-deploy[cpu]'" in done.stdout
