"""Whole runs of ``esnet-train``: their files, interruption and resuming."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from esnet.checkpoint import load_checkpoint
from esnet.data.augment import Augmentation
from esnet.errors import CheckpointError, TrainingError
from esnet.labels import CAMVID, label_set_from_dict
from esnet.training.recipe import Recipe
from esnet.training.run import train
from esnet.training.run_folder import open_run_folder, write_weights
from esnet.training.run_log import COLUMNS, RunLog, read_rows
from esnet.training.settings import RunSettings
from tests.conftest import command_line, obey_ctrl_c

# A step this small leaves the weights as they are.
FROZEN = {"learning_rate": 1e-9, "weight_decay": 0.0, "ema_decay": None, "lovasz_weight": 0.0}


def settings(data: Path, run_dir: Path, **changes) -> RunSettings:
    recipe = {
        "name": "tiny",
        "epochs": 2,
        "batch_size": 2,
        "augmentation": Augmentation(crop_hw=(32, 48), scale=(0.8, 1.5)),
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "ema_decay": 0.9,
        "lovasz_weight": 1.0,
    }
    recipe |= {name: changes.pop(name) for name in list(changes) if name in Recipe.__slots__}
    machine = {"accelerator": "cpu", "precision": "fp32", "workers": 0, "validate_every": 1}
    return RunSettings(
        dataset="camvid",
        data_dir=data,
        run_dir=run_dir,
        recipe=Recipe(**recipe),
        **{**machine, **changes},
    )


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def options(data: Path, run_dir: Path) -> list[str]:
    words = ["--data", str(data), "-o", str(run_dir), "--batch-size", "2", "--crop", "32x48"]
    return [*words, "--accelerator", "cpu", "--precision", "fp32", "--workers", "0"]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}


@pytest.fixture(scope="module")
def finished(small_camvid, tmp_path_factory) -> Path:
    """A finished run of three epochs."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(settings(small_camvid, run_dir, epochs=3))
    return run_dir


def test_a_run_leaves_all_there_is_to_know(finished):
    names = {path.name for path in finished.iterdir()}
    weights = {
        f"{which}.{suffix}" for which in ("best", "last") for suffix in ("ckpt", "safetensors")
    }
    assert names == {"config.json", "metrics.csv", "curve.png", *weights}
    config = json.loads((finished / "config.json").read_text())
    assert config["train"]["pictures"] == 6
    assert config["recipe"]["epochs"] == 3
    assert config["made_with"]["revision"]
    assert cv2.imread(str(finished / "curve.png")).shape[1] > 500


def test_every_epoch_has_its_row(finished):
    assert [row["epoch"] for row in rows(finished)] == ["1", "2", "3"]
    assert all(
        float(row["train_loss"]) > 0 and float(row["images_per_second"]) > 0
        for row in rows(finished)
    )
    assert all(0 <= float(row["val_miou"]) <= 1 for row in rows(finished))


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt", "best.safetensors"])
def test_what_was_trained_is_loaded_and_says_on_what(finished, name):
    checkpoint = load_checkpoint(finished / name)
    assert checkpoint.metadata["trained_on"] == "camvid train, 6 images"
    assert checkpoint.metadata["label_set"] == "camvid"
    assert 0 <= float(checkpoint.metadata["val_miou"]) <= 1


def test_a_checkpoint_gives_the_averaged_weights(finished):
    stored = torch.load(finished / "last.ckpt", weights_only=True)
    key = "decoder.output_conv.bias"
    loaded = load_checkpoint(finished / "last.ckpt").network.state_dict()[key]
    torch.testing.assert_close(loaded, stored["state_dict"][f"network.{key}"])
    assert not torch.equal(loaded, stored["current_model_state"][f"network.{key}"])


def test_batch_statistics_are_learnt_even_from_loaded_weights(finished, small_camvid, tmp_path):
    start = finished / "best.safetensors"
    train(settings(small_camvid, tmp_path / "run", epochs=1, init=str(start)))
    before, after = (
        load_checkpoint(path).network.state_dict()
        for path in (start, tmp_path / "run" / "last.ckpt")
    )
    key = "encoder.initial_block.bn.running_mean"
    assert not torch.equal(before[key], after[key])


def test_classes_without_a_pixel_are_named(small_camvid, tmp_path, capsys):
    names = [*CAMVID.class_names, "snow", "ice"]
    values = {index: index for index in range(11)} | {11: 255}
    more = label_set_from_dict({"name": "more", "names": names, "label_values": values})
    train(settings(small_camvid, tmp_path / "run", epochs=1, label_set=more))
    assert "note      train has no pixel of: snow, ice; esnet-data check" in capsys.readouterr().out


def test_a_finished_run_is_finished(finished, small_camvid):
    before = (finished / "last.ckpt").read_bytes()
    assert train(settings(small_camvid, finished, epochs=3)).epochs == 3
    assert (finished / "last.ckpt").read_bytes() == before


def test_stopped_and_continued_is_as_if_never_stopped(
    finished, small_camvid, tmp_path, monkeypatch
):
    run_dir, begun = tmp_path / "run", []
    start_epoch = RunLog.on_train_epoch_start

    def stop_once(self, trainer, module):
        start_epoch(self, trainer, module)
        begun.append(trainer.current_epoch)
        if begun == [0, 1]:
            raise RuntimeError("the power went")

    monkeypatch.setattr(RunLog, "on_train_epoch_start", stop_once)
    with pytest.raises(RuntimeError, match="the power went"):
        train(settings(small_camvid, run_dir, epochs=3))
    train(settings(small_camvid, run_dir, epochs=3))
    assert begun == [0, 1, 1, 2]
    losses = [[row["train_loss"] for row in rows(path)] for path in (run_dir, finished)]
    assert losses[0] == losses[1]
    ours, theirs = (
        load_checkpoint(path / "last.ckpt").network.state_dict() for path in (run_dir, finished)
    )
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value)


def test_the_checkpoint_holds_the_classes_of_the_dataset(finished):
    assert load_checkpoint(finished / "best.safetensors").label_set == CAMVID


def test_weights_of_other_classes_keep_their_body_and_get_a_new_head(
    small_camvid, tmp_path, capsys, make_state_dict
):
    torch.save(make_state_dict(num_classes=7), tmp_path / "seven.pt")
    run_dir = tmp_path / "run"
    train(settings(small_camvid, run_dir, epochs=1, init=str(tmp_path / "seven.pt"), **FROZEN))
    assert "new head: 11 classes instead of 7" in capsys.readouterr().out
    network = load_checkpoint(run_dir / "last.ckpt").network.state_dict()
    key = "encoder.layers.0.conv3x1_1.weight"
    torch.testing.assert_close(network[key], make_state_dict(num_classes=7)[key], atol=1e-6, rtol=0)
    assert network["decoder.output_conv.bias"].shape == (11,)


def test_quantization_aware_training_needs_weights_of_the_same_classes(
    small_camvid, tmp_path, make_state_dict
):
    torch.save(make_state_dict(num_classes=7), tmp_path / "seven.pt")
    qat = {"quantization": "tensorrt", "init": str(tmp_path / "seven.pt")}
    with pytest.raises(TrainingError, match="has 7 classes, the dataset has 11") as caught:
        train(settings(small_camvid, tmp_path / "run", **qat))
    assert "train in float first" in caught.value.hint


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_mask_with_other_values_is_one_line_before_the_first_epoch(
    small_camvid, tmp_path, invoke, split
):
    data = shutil.copytree(small_camvid, tmp_path / "data")
    cv2.imwrite(str(data / f"{split}annot" / "1.png"), np.full((44, 52), 200, np.uint8))
    done = invoke("esnet-train", *options(data, tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {data / f'{split}annot' / '1.png'} holds the label values"
    )
    assert "[200], outside the classes (0-11, 255)" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "run").exists()


def test_an_image_that_a_worker_cannot_use_is_one_line(small_camvid, tmp_path, invoke, monkeypatch):
    monkeypatch.setattr("esnet.training.data._MAX_CACHE_BYTES", 0)
    data = shutil.copytree(small_camvid, tmp_path / "data")
    cv2.imwrite(str(data / "train" / "1.png"), np.zeros((8, 52, 3), np.uint8))
    done = invoke("esnet-train", *options(data, tmp_path / "run"), "--workers", "1")
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith(f"error: {data}/train/1.png is 8x52, its mask")
    assert error.endswith("is 44x52")
    assert hint.startswith("hint: esnet-data check")


def test_other_settings_do_not_continue_a_run(finished, small_camvid):
    with pytest.raises(
        TrainingError, match=r"recipe\.learning_rate was 0\.001, now 0\.002"
    ) as caught:
        train(settings(small_camvid, finished, epochs=3, learning_rate=2e-3))
    assert "-o" in caught.value.hint


def test_a_folder_with_other_things_is_left_alone(small_camvid, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(TrainingError, match="contains files that are not a run"):
        train(settings(small_camvid, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_encoder_may_go_first(small_camvid, tmp_path):
    train(settings(small_camvid, tmp_path / "run", epochs=1, encoder_epochs=1, ema_decay=None))
    state = load_checkpoint(tmp_path / "run" / "last.ckpt").network.state_dict()
    torch.manual_seed(0)
    assert "encoder_output_conv.weight" in state
    assert len(rows(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"devices": 3}, "a batch of 2 cannot be split over 3", id="batch"),
        pytest.param({"accelerator": "gpu", "devices": 2}, "2 GPUs requested", id="gpus"),
    ],
)
def test_a_machine_that_cannot_is_named(small_camvid, tmp_path, changes, message):
    if torch.cuda.device_count() >= 2:
        pytest.skip("this machine has the GPUs")
    with pytest.raises(TrainingError, match=message):
        train(settings(small_camvid, tmp_path / "run", **changes))


def test_killed_a_run_goes_on_and_ctrl_c_leaves_a_usable_last(small_camvid, tmp_path):
    run_dir = tmp_path / "run"
    words = [*options(small_camvid, run_dir), "--epochs", "200", "--validate-every", "20"]

    def start_and_wait(num_epochs: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command_line("esnet-train", *words),
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=obey_ctrl_c,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and epochs_in(run_dir) < num_epochs:
            time.sleep(0.02)
        return process

    first = start_and_wait(2)
    first.kill()
    first.communicate()
    reached = epochs_in(run_dir)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start_and_wait(epochs_in(run_dir) + 1)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in error
        assert "re-run the command to resume" in out + error
    assert 2 <= reached < epochs_in(run_dir) < 200
    epochs = [int(row["epoch"]) for row in rows(run_dir)]
    assert epochs == list(range(1, len(epochs) + 1))
    assert load_checkpoint(run_dir / "last.ckpt").metadata["epoch"]


def epochs_in(run_dir: Path) -> int:
    return len(rows(run_dir)) if (run_dir / "metrics.csv").is_file() else 0


def test_two_processes_train_one_network(small_camvid, tmp_path):
    run_dir = tmp_path / "run"
    words = [*options(small_camvid, run_dir), "--epochs", "2", "--validate-every", "1"]
    done = subprocess.run(
        # Lightning runs the file in sys.argv[0] again for the second process.
        [sys.executable, "-m", "esnet.training.cli", *words, "--devices", "2"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recipe ") == 1
    assert [row["epoch"] for row in rows(run_dir)] == ["1", "2"]
    assert 0 <= float(rows(run_dir)[1]["val_miou"]) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(["--crop", "30"], "error: size '30' is not HEIGHTxWIDTH", id="crop"),
        pytest.param(["--train-split", "dev"], "error: no split 'dev'", id="split"),
        pytest.param(
            ["--init", "nowhere.pt"], "error: weights file 'nowhere.pt' does not exist", id="init"
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(small_camvid, tmp_path, invoke, changes, message):
    done = invoke("esnet-train", *options(small_camvid, tmp_path / "run"), *changes)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b"[" * 200_000, "config.json is damaged"),
        ("config.json", b"5", "config.json holds no settings"),
        ("config.json", b'{"recipe": 5}', "holds a run with other settings"),
        ("last.ckpt", b"PK\3\4", "last.ckpt cannot be read"),
    ],
)
def test_a_damaged_run_is_not_resumed(tmp_path, name, content, message):
    open_run_folder(tmp_path / "run", {"recipe": {"epochs": 1}})
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises((TrainingError, CheckpointError), match=message):
        open_run_folder(tmp_path / "run", {"recipe": {"epochs": 1}})


@pytest.mark.parametrize(
    "content", [b"\xff", b"epoch\n1\n", b"a,b\n1,2\n", (",".join(COLUMNS) + "\nx,,,,,,\n").encode()]
)
def test_a_damaged_log_is_one_line(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(TrainingError, match=r"metrics\.csv is damaged"):
        read_rows(tmp_path / "metrics.csv", 1)


def test_exported_weights_have_the_permissions_of_the_umask(tmp_path, make_state_dict):
    torch.save(make_state_dict(), tmp_path / "best.ckpt")
    before = os.umask(0o022)
    try:
        write_weights(tmp_path / "best.ckpt")
    finally:
        os.umask(before)
    assert (tmp_path / "best.safetensors").stat().st_mode & 0o777 == 0o644
