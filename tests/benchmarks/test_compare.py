"""``esnet-bench compare``: the routes label alike, and speed is compared round by round."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.baselines.pipelines import plain_onnx_route, plain_openvino_route, torch_route
from benchmarks.baselines.run import (
    CompareReport,
    compare_notes,
    compare_weights,
    comparison_table,
    results_of,
    write_comparison_json,
    write_comparison_markdown,
)
from benchmarks.baselines.worker import PipelineRequest, PipelineWorker
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet, load_frames
from esnet.checkpoint import load_checkpoint
from esnet.data.datasets import open_split

SIZE = (64, 128)


@pytest.fixture(scope="module")
def camvid():
    return load_checkpoint("camvid")


@pytest.fixture(scope="module")
def frames() -> FrameSet:
    full = load_frames(None, SIZE)
    return dataclasses.replace(full, frames=full.frames[:2])


@pytest.mark.parametrize("make", [plain_onnx_route, plain_openvino_route])
def test_the_plain_export_labels_as_torch_does(camvid, tmp_path, frames, make):
    frame = frames.frames[0]
    plain, torch = make(camvid, SIZE, tmp_path / "plain.onnx"), torch_route(camvid)
    assert (plain(frame) == torch(frame)).mean() > 0.98


def test_routes_are_compared_with_the_first_within_a_round():
    maps = [np.zeros((4, 4), np.uint8)]
    # The machine halves its speed in the second round: both routes take twice the time.
    blocks = [[[100.0, 102.0], [200.0, 204.0]], [[50.0, 51.0], [100.0, 102.0]]]
    results = results_of(["a", "b"], blocks, [maps, [maps[0] + 1]], mious={"b": 0.5}, sha256={})
    assert [result.speed for result in results] == [1.0, 2.0]
    assert (results[1].speed_low, results[1].speed_high) == (2.0, 2.0)
    assert [result.agreement for result in results] == [1.0, 0.0]
    assert [result.miou for result in results] == [None, 0.5]


def request_of(frames, name: str, folder) -> PipelineRequest:
    return PipelineRequest(
        name=name, weights="camvid", folder=folder, calibration=None, frames=frames.frames
    )


def test_a_worker_times_and_labels_in_a_process_of_its_own(camvid, frames, tmp_path):
    with PipelineWorker(request_of(frames, "torch eager fp32", tmp_path)) as worker:
        assert len(worker.time_block(0.0, 3)) == 3
        expected = torch_route(camvid)(frames.frames[1])
        assert (worker.segment(frames.frames)[1] == expected).all()
        assert worker.segment([np.zeros((32, 40, 3), np.uint8)])[0].shape == (32, 40)


def test_a_route_that_fails_tells_why(frames, tmp_path):
    wrong = dataclasses.replace(request_of(frames, "torch eager fp32", tmp_path), weights="no.pt")
    with pytest.raises(BenchmarkError, match=r"torch eager fp32: CheckpointError: .*no\.pt"):
        PipelineWorker(wrong)


@pytest.fixture(scope="module")
def report(frames, small_camvid) -> CompareReport:
    """Every route there is, on tiny frames, compiled ones apart: a compiler takes its minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.baselines.run.MIN_ROUNDS", 2)
        labelled = open_split("camvid", small_camvid, "val")
        skip = ("torch.compile fp32",)
        return compare_weights("camvid", frames, rounds=2, labelled=labelled, skip=skip)


def test_every_route_of_this_machine_is_there_with_its_accuracy(report):
    names = [result.name for result in report.results]
    for name in (
        "torch eager fp32",
        "torch.onnx.export, ONNX Runtime, numpy argmax",
        "torch.onnx.export, OpenVINO, numpy argmax",
        "esnet-deploy, openvino fp32",
        "esnet-deploy, openvino int8",
        "esnet-deploy, onnxruntime int8",
    ):
        assert name in names
    for result in report.results:
        assert result.agreement > 0.9, result.name
        # Frames of 44x52 are too small for INT8's own check, and that is said.
        is_told = any(f"mIoU of {result.name}" in line for line in report.left_out)
        assert (result.miou is None) == is_told, result.name
        assert (result.sha256 is None) == ("torch eager" in result.name or "bf16," in result.name)


def test_the_table_has_a_row_for_each_and_says_what_it_is(report, tmp_path):
    grid = comparison_table(report)
    assert [row[0] for row in grid.rows] == [result.name for result in report.results]
    assert grid.columns[-1] == "mIoU"
    assert any("compute floor of" in note for note in compare_notes(report))
    write_comparison_markdown(report, tmp_path / "c.md")
    assert "| esnet-deploy, openvino int8 |" in (tmp_path / "c.md").read_text()


def test_the_json_holds_weights_files_and_figures(report, tmp_path):
    write_comparison_json(report, tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["mode"] == "compare"
    assert content["weights_sha256"] == report.weights_sha256
    assert content["results"][1]["end_to_end"]["p50"] > 0


def test_few_rounds_are_refused(frames):
    with pytest.raises(BenchmarkError, match="3 rounds are too few"):
        compare_weights("camvid", frames, rounds=3)


def test_frames_that_no_network_takes_are_refused(frames):
    odd = dataclasses.replace(frames, frames=(np.zeros((30, 40, 3), np.uint8),))
    with pytest.raises(BenchmarkError, match="multiples of 8"):
        compare_weights("camvid", odd)
