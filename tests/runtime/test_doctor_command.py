"""``esnet-doctor`` as its user meets it."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = str(Path(sys.executable).with_name("esnet-doctor"))


def run(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_text_names_what_runs_and_what_is_installed():
    done = run(TOOL)
    assert done.returncode == 0, done.stderr
    assert "ok  run on CPU: openvino" in done.stdout
    assert "installed: numpy " in done.stdout
    assert done.stderr == ""


def test_the_json_is_json_alone():
    done = run(TOOL, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"machine", "installed", "checks", "warnings", "gpus", "can_run"}


def test_a_card_can_be_asked_about_that_is_not_here():
    done = run(TOOL, "--gpu", "GTX 1080 Ti")
    assert done.returncode == 0, done.stderr
    assert "gpu: GTX 1080 Ti (SM 6.1): TensorRT 8.6.1 at most" in done.stdout


def test_an_unknown_card_is_bad_input_with_a_hint():
    done = run(TOOL, "--gpu", "RTX 3065")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: unknown GPU 'RTX 3065'"
    assert "RTX 3060" in done.stderr.splitlines()[1]


def test_without_a_backend_it_ends_with_3_and_the_pip_line():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('openvino', 'onnxruntime', 'torch'))); "
        "from runtime.cli import doctor_main; doctor_main()"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 3
    assert "NO  run on CPU: openvino" in done.stdout
    assert "no backend can run a model here: pip install 'esnet-deploy[cpu]'" in done.stdout
