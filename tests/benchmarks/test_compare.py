"""``esnet-bench compare``: all pipelines give the same labels, and speed is compared within a round."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.baselines.pipelines import (
    PipelineSetup,
    pipeline_makers,
    torch_pipeline,
)
from benchmarks.baselines.run import (
    CompareReport,
    compare_pipelines,
    document_from_report,
    results_of,
)
from benchmarks.baselines.worker import PipelineWorker
from benchmarks.cli import app
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet, load_frames
from benchmarks.report.tables import publish
from benchmarks.roofline import peak
from esnet.checkpoint import load_checkpoint
from runtime.artefact.card import ModelCard

SIZE = (64, 128)


@pytest.fixture(scope="module")
def camvid():
    return load_checkpoint("camvid")


@pytest.fixture(scope="module")
def frames() -> FrameSet:
    full = load_frames(None, SIZE)
    return dataclasses.replace(full, frames=full.frames[:2])


@pytest.fixture(scope="module")
def shared_setup(tmp_path_factory) -> PipelineSetup:
    """A setup whose folder keeps the exported files from test to test."""
    folder = tmp_path_factory.mktemp("pipelines")
    return PipelineSetup(weights="camvid", size_hw=SIZE, folder=folder)


@pytest.mark.parametrize("name", [name for name in pipeline_makers() if ".compile" not in name])
def test_every_pipeline_of_this_machine_labels_as_torch_does(camvid, frames, shared_setup, name):
    pipeline, path = pipeline_makers()[name](shared_setup)
    frame = frames.frames[0]
    is_coarse = "int8" in name or "bf16" in name
    assert (pipeline(frame) == torch_pipeline(camvid)(frame)).mean() > (0.9 if is_coarse else 0.98)
    assert (path is None) == name.startswith("torch ")
    if name.startswith("esnet-deploy"):
        is_int8 = ModelCard.from_file(path).precision == "int8"
        assert is_int8 == name.endswith("int8")


def test_the_pipelines_are_torch_plain_exports_and_ours():
    assert {
        "torch eager fp32",
        "torch.compile fp32",
        "torch.onnx.export, ONNX Runtime, numpy argmax",
        "torch.onnx.export, OpenVINO, numpy argmax",
        "esnet-deploy, openvino fp32",
        "esnet-deploy, openvino int8",
        "esnet-deploy, onnxruntime int8",
    } <= set(pipeline_makers())


def test_a_torch_pipeline_leaves_the_checkpoint_as_it_is(camvid, frames):
    torch_pipeline(camvid, dtype=torch.bfloat16, channels_last=True)(frames.frames[0])
    weights = [weight for weight in camvid.network.parameters() if weight.ndim == 4]
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert all(weight.is_contiguous() for weight in weights)


def test_pipelines_are_compared_with_the_first_within_a_round():
    labels = [np.zeros((4, 4), np.uint8)]
    # The machine halves its speed in the second round: both pipelines take twice the time.
    first = SimpleNamespace(name="a", labels=labels, miou=None, sha256=None)
    first.blocks_ms = [[100.0, 102.0], [200.0, 204.0]]
    second = SimpleNamespace(name="b", labels=[labels[0] + 1], miou=0.5, sha256=None)
    second.blocks_ms = [[50.0, 51.0], [100.0, 102.0]]
    results = results_of([first, second])
    assert [result.speed for result in results] == [1.0, 2.0]
    assert results[1].speed_interval == (2.0, 2.0)
    assert [result.agreement for result in results] == [1.0, 0.0]
    assert [result.miou for result in results] == [None, 0.5]


@pytest.fixture
def setup(tmp_path) -> PipelineSetup:
    return PipelineSetup(weights="camvid", size_hw=SIZE, folder=tmp_path)


def test_a_worker_times_and_labels_in_a_process_of_its_own(camvid, frames, setup):
    with PipelineWorker("torch eager fp32", setup, frames.frames) as worker:
        assert worker.submit(os.getpid).result() != os.getpid()
        assert len(times := worker.time_block()) >= 2
        assert sum(times) >= 200
        expected = torch_pipeline(camvid)(frames.frames[1])
        assert (worker.segment(frames.frames)[1] == expected).all()
        assert worker.segment([np.zeros((32, 40, 3), np.uint8)])[0].shape == (32, 40)


def test_a_pipeline_that_fails_tells_why(frames, setup):
    wrong = dataclasses.replace(setup, weights="no.pt")
    with pytest.raises(BenchmarkError, match=r"torch eager fp32: CheckpointError: .*no\.pt"):
        PipelineWorker("torch eager fp32", wrong, frames.frames)


def test_a_process_that_crashes_ends_with_its_exit_code(frames, setup):
    with PipelineWorker("esnet-deploy, onnxruntime fp32", setup, frames.frames) as worker:
        worker.submit(os._exit, 7)
        with pytest.raises(BenchmarkError, match=r"onnxruntime fp32: its process .* code 7"):
            worker.time_block()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the command: its report, its output and its files."""

    report: CompareReport
    printed: str
    json_path: Path
    markdown_path: Path


def compare(data_dir: Path | None = None) -> CompareReport:
    return compare_pipelines(
        "camvid", frames=None, size_hw=SIZE, data_dir=data_dir, calibration=None, rounds=2
    )


TIMED = (
    "torch eager fp32",
    "torch.onnx.export, ONNX Runtime, numpy argmax",
    "esnet-deploy, openvino int8",
)


@pytest.fixture(scope="module")
def run(small_camvid, tmp_path_factory) -> Run:
    """Three of the pipelines on tiny frames."""
    makers = {name: pipeline_makers()[name] for name in TIMED}
    folder, printed = tmp_path_factory.mktemp("compare"), io.StringIO()
    paths = {"json_path": folder / "c.json", "markdown_path": folder / "c.md"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("benchmarks.baselines.run.pipeline_makers", lambda: makers)
        patch.setattr("benchmarks.frames.NUM_FRAMES", 2)
        patch.setattr(peak, "_PROBES", ((32, 16),))
        patch.setattr(peak, "_ARRAY_VALUES", 2**20)
        patch.setattr(peak, "_LEAST_SECONDS", 0.0)
        report = compare(small_camvid)
        publish(document_from_report(report), report.as_dict(), *paths.values())
    return Run(report=report, printed=printed.getvalue(), **paths)


def test_every_pipeline_is_there_with_its_accuracy(run):
    assert [result.name for result in run.report.results] == list(TIMED)
    for result in run.report.results:
        assert result.agreement > 0.9, result.name
        # Images of 44x52 are too small for the check of INT8 artefacts: the report lists the reason.
        is_listed = any(f"mIoU of {result.name}" in line for line in run.report.left_out)
        assert (result.miou is None) == is_listed, result.name
        assert (result.sha256 is None) == (result.name == "torch eager fp32")


def test_the_table_has_a_row_for_each_pipeline_and_notes_explain_it(run):
    document = document_from_report(run.report)
    table, notes = document.tables[0], document.notes
    names = [result.name for result in run.report.results]
    assert [row[0] for row in table.rows] == names
    assert table.columns[-1] == "mIoU"
    assert any(note.startswith("compute bound of 0.7 GFLOP") for note in notes)
    bounded = [note.partition(": ")[0] for note in notes if note.endswith("x its compute bound.")]
    assert bounded == [name for name in names if name.startswith("esnet-deploy")]


def test_table_and_notes_are_printed_and_written(run):
    markdown = run.markdown_path.read_text()
    assert "| esnet-deploy, openvino int8 |" in markdown
    for text in (*document_from_report(run.report).notes, "2 generated street scenes, 64x128"):
        assert text in run.printed
        assert text in markdown
    assert f"wrote {run.json_path}" in run.printed


def test_the_json_holds_weights_files_and_figures(run):
    content = json.loads(run.json_path.read_text())
    assert content["mode"] == "compare"
    assert content["weights_sha256"] == run.report.weights_sha256
    assert content["results"][1]["end_to_end"]["p50"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--rounds", "3"], "greater than or equal to 20", id="rounds"),
        pytest.param(["--size", "30x40"], "size 30x40 must be multiples of 8", id="size"),
        pytest.param(["--json", "none/a.json"], "folder none does not exist", id="folder"),
        pytest.param(["--calibration", "none"], "frames 'none' do not exist", id="calibration"),
    ],
)
def test_unsuitable_options_are_refused(options, message):
    result = CliRunner().invoke(app, ["compare", *options])
    assert message in result.output + str(result.exception)


def test_a_pipeline_that_cannot_be_made_is_left_out_with_its_reason(monkeypatch):
    def fail(name, setup, frames):
        raise BenchmarkError(f"{name}: its process ended with exit code -9")

    monkeypatch.setattr("benchmarks.baselines.run.PipelineWorker", fail)
    with pytest.raises(
        BenchmarkError, match=r"no pipeline runs here: torch eager fp32: .* code -9; "
    ):
        compare()
