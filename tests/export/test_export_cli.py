"""``esnet-export``: exit codes, one error line and a hint, and no files left after Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import onnx
import pytest
from onnx import helper

from runtime.artefact.card import ModelCard
from tests.conftest import command_line, obey_ctrl_c, run_command

SIZE = ("--size", "64x128")


@pytest.fixture
def esnet_export(invoke):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        done = invoke("esnet-export", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="session")
def model_path(make_artefact):
    """Small artefact."""
    return make_artefact()


def test_to_onnx_writes_a_verified_artefact_and_says_so(checkpoint_path, tmp_path):
    output = tmp_path / "model.onnx"
    done = run_command("esnet-export", "to-onnx", checkpoint_path, "-o", output, *SIZE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "max |logit difference|" in done.stdout
    assert f"esnet-bench {output}" in done.stdout


def test_options_reach_the_card(esnet_export, checkpoint_path, tmp_path):
    output = tmp_path / "model.onnx"
    options = (
        *("--size", "32x64", "--batch", "2", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"),
        *("--input", "tensor", "--output", "labels+confidence", "--optimize-for", "openvino"),
        *("--upsample", "subpixel", "--fp16", "--opset", "18", "--no-verify"),
    )
    code, _, _ = esnet_export("to-onnx", checkpoint_path, "-o", output, *options)
    card = ModelCard.from_file(output)
    assert code == 0
    assert (card.size_hw, card.batch, card.input) == ((32, 64), (2, 2, 2), "tensor")
    assert (card.mean, card.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert (card.outputs, card.optimized_for) == (("labels", "confidence"), "openvino")
    assert (card.precision, card.form["upsample"], card.form["opset"]) == ("fp16", "subpixel", 18)


def test_command_line_stands_in_the_card(esnet_export, checkpoint_path, tmp_path):
    output = tmp_path / "model.onnx"
    esnet_export("to-onnx", checkpoint_path, "-o", output, *SIZE, "--no-verify")
    command = f"esnet-export to-onnx {checkpoint_path} -o {output} --size 64x128 --no-verify"
    assert ModelCard.from_file(output).created["command"] == command


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        pytest.param(
            ["--size", "60x100"], "size 60x100 must be multiples of 8", "--size 64x96", id="size"
        ),
        pytest.param(
            ["--size", "big"], "'big' is not HEIGHTxWIDTH", "--size 512x1024", id="no-size"
        ),
        pytest.param(
            ["--label-set", "cityscapes"], "has 19 classes", "--label-set camvid", id="label-set"
        ),
        pytest.param(["--mean", "1,2"], "'1,2' is not three numbers", "--mean 0.485", id="mean"),
        pytest.param(["--mean", "a,b,c"], "is not three numbers", "--mean 0.485", id="mean-words"),
        pytest.param(["--mean", "123,116,103"], "0-1 scale", "divide", id="mean-of-bytes"),
        pytest.param(["--std", "0,1,1"], "std above 0", "divide", id="std-of-zero"),
        pytest.param(
            ["--batch", "4:2:1"], "4:2:1 is out of order", "--batch 1:1:8", id="falling-batch"
        ),
        pytest.param(["--batch", "many"], "neither N nor MIN:OPT:MAX", "1:1:8", id="batch"),
        pytest.param(["--opset", "9"], "opset 9 is out of range", "17", id="opset"),
        pytest.param(["--frames", "nowhere"], "'nowhere' does not exist", "image", id="frames"),
        pytest.param(
            ["-o", "nowhere/model.onnx"],
            "output folder nowhere does not exist",
            "mkdir -p nowhere",
            id="no-folder",
        ),
        pytest.param(["-o", "."], "output . is a folder", "choose another", id="folder"),
        pytest.param(
            ["-o", "model.engine"], "does not end in .onnx", "for example model.onnx", id="suffix"
        ),
    ],
)
def test_bad_argument_ends_with_one_error_line_and_a_hint(
    arguments, error, hint, esnet_export, checkpoint_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = ["-o", "model.onnx", *SIZE, *arguments]
    code, out, err = esnet_export("to-onnx", checkpoint_path, *options)
    first, second = err.splitlines()
    assert (code, out) == (2, "")
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert hint in second
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"hello", "is not a torch checkpoint", id="text"),
        pytest.param(b"PK\x03\x04 cut", "cannot be read as a state dict", id="truncated"),
    ],
)
def test_bad_weights_end_with_one_error_line_and_a_hint(content, error, esnet_export, tmp_path):
    weights = tmp_path / "weights.pt"
    if content is not None:
        weights.write_bytes(content)
    code, _, err = esnet_export("to-onnx", weights, *SIZE)
    first, second = err.splitlines()
    assert code == 2
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_an_exported_model_is_no_checkpoint(esnet_export, model_path):
    code, _, err = esnet_export("to-onnx", model_path)
    assert (code, err.splitlines()) == (
        2,
        [
            f"error: {model_path} is already an exported model, not a checkpoint",
            f"hint: it runs as it is: esnet-bench {model_path}",
        ],
    )


def test_folder_that_cannot_be_written_ends_with_one_error_line(esnet_export, checkpoint_path):
    code, _, err = esnet_export("to-onnx", checkpoint_path, "-o", "/proc/model.onnx", *SIZE)
    assert code == 2
    assert err.splitlines()[0].startswith("error: ")
    assert err.splitlines()[0].endswith(": /proc/model.onnx")
    assert "Traceback" not in err


def test_broken_parity_ends_with_exit_code_1(esnet_export, checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr("export.parity._LIMITS", {"fp32": (0.0, 1.0)})
    code, _, err = esnet_export("to-onnx", checkpoint_path, "-o", tmp_path / "model.onnx", *SIZE)
    assert code == 1
    assert err.startswith("error: the fp32 artefact does not compute what the checkpoint computes")


def test_missing_backend_ends_with_exit_code_3(esnet_export, checkpoint_path, monkeypatch):
    monkeypatch.setattr("export.parity.installed_backends", tuple)
    code, _, err = esnet_export("to-onnx", checkpoint_path, *SIZE)
    assert code == 3
    assert "pip install 'esnet-deploy[cpu]'" in err


def test_ctrl_c_while_exporting_leaves_nothing_on_disk(checkpoint_path, tmp_path):
    child = subprocess.Popen(
        command_line("esnet-export", "to-onnx", checkpoint_path, "-o", "model.onnx"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey_ctrl_c,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [path.name for path in tmp_path.iterdir()] != ["model.onnx"], (
        "it ended before the signal"
    )
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_inspect_prints_the_card_of_our_artefact(esnet_export, model_path):
    code, out, _ = esnet_export("inspect", model_path)
    text = " ".join(out.split())
    assert code == 0
    for part in ("input frames uint8 (N, 64, 128, 3)", "opset 17, IR 8", "name small, fp32", "sky"):
        assert part in text


def test_inspect_prints_json_on_request(esnet_export, model_path):
    code, out, _ = esnet_export("inspect", model_path, "--json")
    fields = json.loads(out)
    assert code == 0
    assert fields["card"]["name"] == "small"
    assert fields["inputs"] == ["frames uint8 (N, 64, 128, 3)"]


def test_inspect_describes_onnx_files_of_others(esnet_export, make_model, tmp_path):
    path = tmp_path / "other.onnx"
    node = helper.make_node("Relu", ["x"], ["y"])
    onnx.save(make_model([node], inputs={"x": ["N"]}, outputs={"y": ["N"]}), path)
    code, out, _ = esnet_export("inspect", path)
    assert code == 0
    assert "none: not an artefact of this toolkit" in out


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda content: None, "does not exist", id="missing"),
        pytest.param(lambda content: b"", "is empty", id="empty"),
        pytest.param(lambda content: content[:-100], "is truncated", id="truncated"),
        pytest.param(lambda content: b"\x89PNG\r\n\x1a\n", "is not an ONNX file", id="image"),
        pytest.param(lambda content: b"hello", "is not an ONNX file", id="text"),
    ],
)
def test_inspect_refuses_what_is_no_onnx_file(spoil, error, esnet_export, model_path, tmp_path):
    path = tmp_path / "bad.onnx"
    content = spoil(model_path.read_bytes())
    if content is not None:
        path.write_bytes(content)
    code, out, err = esnet_export("inspect", path)
    first, second = err.splitlines()
    assert (code, out) == (2, "")
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
