"""``esnet-eval``: the same mIoU for torch and for the artefact, at the resolution of the labels."""

import json
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.accuracy.evaluate import evaluate, open_predictor
from benchmarks.errors import BenchmarkError
from esnet.data.datasets import open_split
from esnet.labels import CAMVID
from tests.conftest import random_network, run_command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights of 11 classes, those of the artefacts that ``make_artefact`` writes."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    state = {key: value.contiguous() for key, value in random_network().state_dict().items()}
    save_file(state, path, metadata={"label_set": "camvid"})
    return path


@pytest.fixture
def run_eval(invoke):
    """Run the command in this process."""
    return partial(invoke, "esnet-eval")


def test_torch_and_the_artefact_agree(weights, make_artefact, small_camvid):
    split = open_split("camvid", small_camvid, "val")
    torch_report = evaluate(open_predictor(weights, size_hw=(64, 128)), split)
    onnx_report = evaluate(open_predictor(make_artefact()), split)
    assert onnx_report.matrix.miou == pytest.approx(torch_report.matrix.miou, abs=1e-3)
    assert torch_report.matrix.counts.sum() == onnx_report.matrix.counts.sum() == 3 * 42 * 52


def test_the_figure_is_that_of_the_network_itself(weights, small_camvid):
    split = open_split("camvid", small_camvid, "val")
    report = evaluate(open_predictor(weights, size_hw=(48, 56)), split)
    network, right, union = random_network(), np.zeros(11), np.zeros(11)
    for sample in split:
        frame = cv2.resize(sample.image, (56, 48), interpolation=cv2.INTER_LINEAR)
        tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        labels = network(tensor).argmax(1)[0].byte().numpy()
        labels = cv2.resize(labels, (52, 44), interpolation=cv2.INTER_NEAREST_EXACT)
        counted = sample.labels != 11
        for k in range(11):
            true, predicted = (sample.labels == k) & counted, (labels == k) & counted
            right[k] += (true & predicted).sum()
            union[k] += (true | predicted).sum()
    assert report.matrix.miou == pytest.approx(
        np.mean(right[union > 0] / union[union > 0]), abs=1e-9
    )


def test_every_figure_is_in_the_json(weights, small_camvid, tmp_path):
    out = tmp_path / "eval.json"
    done = run_command("esnet-eval", "--model", weights, "--data", small_camvid, "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["num_images"] == 3
    assert report["dataset"] == "camvid"
    assert len(report["iou"]) == 11
    assert report["sha256"] == open_predictor(weights).sha256
    assert np.nanmean([v for v in report["iou"].values() if v is not None]) == pytest.approx(
        report["miou"]
    )
    assert f"mIoU {100 * report['miou']:.2f} %" in done.stdout


def test_the_confusion_matrix_is_drawn(run_eval, weights, small_camvid, tmp_path):
    out = tmp_path / "confusion.png"
    assert run_eval("--model", weights, "--data", small_camvid, "--confusion", out).returncode == 0
    assert min(cv2.imread(str(out)).shape[:2]) > 500


def test_several_models_stand_side_by_side(run_eval, make_artefact, small_camvid, tmp_path):
    out = tmp_path / "eval.json"
    path = make_artefact()
    done = run_eval("-m", path, "-m", path, "--data", small_camvid, "--json", out)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(out.read_text())["reports"]
    assert first["miou"] == second["miou"]
    assert "mIoU over (1)" in done.stdout
    assert "+0.00" in done.stdout


def test_a_backend_that_failed_the_label_check_is_skipped(run_eval, artefact_with, small_camvid):
    model = artefact_with(quantization={"backends": ["onnxruntime"]})
    options = ("-m", model, "--data", small_camvid, "--dataset", "camvid")
    done = run_eval(*options, "--explain")
    assert done.returncode == 0, done.stderr
    assert "note: openvino is skipped: it failed the label check" in done.stderr
    assert "onnxruntime fp32: the only candidate" in done.stderr
    refused = run_eval(*options, "--backend", "openvino")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: openvino did not pass the label check")
    assert run_eval(*options, "--backend", "openvino", "--allow-mismatch").returncode == 0


def test_a_confusion_matrix_is_of_one_model(run_eval, weights, small_camvid):
    options = ["-m", weights, "-m", weights, "--data", small_camvid, "--confusion", "c.png"]
    done = run_eval(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --confusion draws one model, got 2")


@pytest.mark.parametrize(
    ("max_images", "expected"), [(2, [0, 2]), (3, [0, 1, 2]), (8, [0, 1, 2]), (None, [0, 1, 2])]
)
def test_some_images_are_spread_over_the_split(weights, small_camvid, max_images, expected):
    seen: list[int] = []

    def track(indices):
        seen.extend(indices)
        return indices

    split = open_split("camvid", small_camvid, "val")
    report = evaluate(open_predictor(weights), split, max_images=max_images, track=track)
    assert seen == expected
    assert report.num_images == len(expected)


def test_the_dataset_is_told_by_the_model(weights):
    assert open_predictor(weights).label_set == CAMVID


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--split", "test"], "error: no split 'test'", id="split"),
        pytest.param(
            ["--backend", "openvino"], "--backend and --precision are for artefacts", id="backend"
        ),
        pytest.param(["--dataset", "kitti"], "unknown dataset 'kitti'", id="dataset"),
        pytest.param(["--label-set", "kitti"], "label set 'kitti' is neither", id="label-set"),
        pytest.param(
            ["--label-set", "cityscapes"], "has 11 classes of camvid, camvid has 19", id="classes"
        ),
        pytest.param(
            ["--json", "nowhere/a.json"], "output folder nowhere does not exist", id="json"
        ),
        pytest.param(["--size", "30x40"], "must be multiples of 8", id="size"),
        pytest.param(["--confusion", "a.txt"], "a.txt does not end in .png", id="confusion"),
    ],
)
def test_bad_input_is_one_line(run_eval, weights, small_camvid, options, message):
    done = run_eval("--model", weights, "--data", small_camvid, *options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


def test_a_confusion_matrix_without_matplotlib_is_refused_before_the_evaluation(
    run_eval, weights, small_camvid, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run_eval("--model", weights, "--data", small_camvid, "--confusion", "c.png")
    assert (done.returncode, done.stdout) == (3, "")
    assert "needs matplotlib" in done.stderr
    assert "pip install 'esnet-deploy[report]'" in done.stderr


def test_a_size_is_refused_for_an_artefact(make_artefact):
    with pytest.raises(BenchmarkError, match="works at the size it was exported for"):
        open_predictor(make_artefact(), size_hw=(64, 128))


def test_weights_without_class_names_are_measured_on_the_dataset_that_is_named(
    run_eval, small_camvid, tmp_path
):
    state = {key: value.contiguous() for key, value in random_network().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    options = ["--model", tmp_path / "w.safetensors", "--data", small_camvid]
    assert "holds the label values [11]" in run_eval(*options).stderr
    assert "bicyclist" in run_eval(*options, "--dataset", "camvid").stdout


def test_own_classes_are_measured_on_own_masks(run_eval, weights, small_camvid, tmp_path):
    """The figures are those of CamVid, though the masks hold other values and the classes other names."""
    names = [f"own {index}" for index in range(11)]
    values = {100 + index: index for index in range(11)} | {0: 255}
    (tmp_path / "own.json").write_text(json.dumps({"names": names, "label_values": values}))
    for path in (small_camvid / "val").iterdir():
        mask = cv2.imread(str(small_camvid / "valannot" / path.name), cv2.IMREAD_UNCHANGED)
        for folder, image in (
            ("images", cv2.imread(str(path))),
            ("masks", np.where(mask == 11, 0, mask + 100)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / path.name), image)
    own_data = ["--dataset", "folder", "--label-set", tmp_path / "own.json", "--split", "all"]
    reports = []
    for options in (["--data", small_camvid], ["--data", tmp_path, *own_data]):
        done = run_eval("--model", weights, *options, "--json", tmp_path / "eval.json")
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / "eval.json").read_text()))
    camvid, own = reports
    assert own["confusion"] == camvid["confusion"]
    assert list(own["iou"]) == names
    assert own["dataset"] == tmp_path.name
