from __future__ import annotations

import csv
import dataclasses
import json
import subprocess

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.frames import load_frames
from benchmarks.models import BenchOptions
from benchmarks.report.console import (
    document_from_report,
    int8_advice,
    notes,
    result_table,
    verdicts,
)
from benchmarks.report.tables import markdown_from_document, print_document, write_csv, write_json
from benchmarks.scopes import SCOPES
from benchmarks.timing.stages import _engine_hint, measure_stages
from benchmarks.timing.statistics import summarize
from benchmarks.timing.suite import bench_models
from esnet.data.scenes import street_scene
from runtime.artefact.card import BatchRange
from runtime.backends.null import NullBackend
from runtime.errors import InvalidInput
from runtime.output.images import write_image
from runtime.segmenter import Segmenter
from runtime.trials import Candidate
from tests.conftest import command_line

SIZE = (64, 128)


@pytest.fixture(scope="module")
def report(make_artefact, quick):
    models = [make_artefact(optimized_for="openvino"), make_artefact(optimized_for="tensorrt")]
    options = BenchOptions(backends=["onnxruntime"], config=quick, reference=models[0])
    return bench_models(models, load_frames(None, SIZE), options)


def with_model(result, **changes):
    """Change the identity of a result."""
    return dataclasses.replace(result, model=dataclasses.replace(result.model, **changes))


def with_scope(result, scope: str, times: list[float]):
    """Change the timings of one scope of a result."""
    return dataclasses.replace(result, scopes={**result.scopes, scope: summarize(times)})


def test_every_model_has_both_scopes_measured(report):
    assert len(report.results) == 2
    for result in report.results:
        assert list(result.scopes) == ["engine", "end to end"]
        assert all(summary.n >= 5 for summary in result.scopes.values())


def test_two_forms_of_the_same_network_agree(report):
    assert report.results[1].model.agreement > 0.999


def test_a_network_that_computes_something_else_is_seen(make_artefact, quick):
    models = [make_artefact(), make_artefact(mean=(0.9, 0.1, 0.5))]
    frames = load_frames(None, SIZE)
    options = BenchOptions(backends=["onnxruntime"], config=quick, reference=models[0])
    result = bench_models(models, frames, options)
    assert result.results[1].model.agreement < 0.9


def test_backends_and_precisions_are_crossed(make_artefact, quick):
    frames = load_frames(None, SIZE)
    options = BenchOptions(backends=["onnxruntime", "null"], config=quick)
    result = bench_models([make_artefact()], frames, options)
    assert [entry.model.backend for entry in result.results] == ["onnxruntime", "null"]


def test_labels_of_garbage_are_not_timed_unknowingly(report, make_artefact, quick):
    frames = load_frames(None, SIZE)
    options = BenchOptions(backends=["null"], config=quick)
    idle = bench_models([make_artefact()], frames, options)
    share = idle.results[0].model.agreement
    assert share < 0.9  # of its own fp32 labels: the null backend computes nothing
    assert result_table(idle).rows[-1][-1] == f"{100 * share:.2f} %"


def test_without_a_reference_unchecked_is_said(report):
    alone = with_model(report.results[0], reference=None, agreement=None)
    lonely = dataclasses.replace(report, results=(alone,))
    assert any(note.startswith("unchecked: ") for note in notes(lonely))
    assert result_table(lonely).rows[-1][-1] == "unchecked"


@pytest.mark.serial
def test_the_harness_costs_little(report):
    assert report.overhead_us < 200  # 6 us on a quiet machine; CI's is not


def test_int8_that_is_no_faster_is_advised_against(report):
    def at(precision: str, ms: float):
        first = with_model(report.results[0], name=precision, precision=precision)
        return with_scope(first, "engine", [ms] * 20)

    close = dataclasses.replace(report, results=(at("fp16", 10.3), at("int8", 10.0)))
    assert "less than 5 %: use fp16" in int8_advice(close)[0]
    apart = dataclasses.replace(report, results=(at("fp16", 20.0), at("int8", 10.0)))
    assert int8_advice(apart) == []


@pytest.mark.parametrize(
    ("bf16_ms", "hint"),
    [
        pytest.param(1.0, "--precision bf16 (2.0x in the trial here), or esnet-", id="faster"),
        pytest.param(3.0, "esnet-export quantize", id="slower"),
        pytest.param(None, "esnet-export quantize", id="not-measured"),
    ],
)
def test_bf16_is_advised_only_if_it_was_faster_here(make_artefact, monkeypatch, bf16_ms, hint):
    times = {Candidate("openvino", "fp32"): 2.0, Candidate("openvino", "bf16"): bf16_ms}
    times = {candidate: ms for candidate, ms in times.items() if ms}
    monkeypatch.setattr("benchmarks.timing.stages.cached_times", lambda probe: times)
    with Segmenter.open(make_artefact(), backend="openvino") as segmenter:
        assert _engine_hint(segmenter).startswith(hint)


def test_a_skipped_backend_is_in_the_advice(artefact_with, quick):
    path = artefact_with(quantization={"backends": ["onnxruntime"]})
    model = (
        bench_models([path], load_frames(None, SIZE), BenchOptions(config=quick)).results[0].model
    )
    assert model.backend == "onnxruntime"
    assert any("openvino is skipped: it failed" in line for line in model.advice)


@pytest.mark.parametrize("batch", [1, 4])
def test_every_stage_of_a_batch_has_its_time_per_frame(make_artefact, batch):
    with Segmenter.open(make_artefact(), backend="null") as segmenter:
        breakdown = measure_stages(segmenter, load_frames(None, SIZE), batch, rounds=5)
    names = ("decode", "resize", "prepare", "engine", "upscale", "overlay", "other")
    assert tuple(breakdown.stages_ms) == names
    assert breakdown.batch == batch
    total_ms = sum(breakdown.stages_ms.values())
    assert total_ms == pytest.approx(breakdown.total_ms, rel=0.05)


class TestBatches:
    @pytest.fixture
    def seen(self, monkeypatch) -> list[np.ndarray]:
        """The batches that the null backend runs."""
        seen: list[np.ndarray] = []
        run = NullBackend._infer
        monkeypatch.setattr(
            NullBackend, "_infer", lambda self, batch: (seen.append(batch), run(self, batch))[1]
        )
        return seen

    def test_every_batch_holds_different_frames(self, make_artefact, quick, seen):
        options = BenchOptions(backends=["null"], batches=(8,), config=quick)
        bench_models([make_artefact()], load_frames(None, SIZE), options)
        batches = [batch for batch in seen if len(batch) == 8]
        assert batches
        assert all(len({frame.tobytes() for frame in batch}) == 8 for batch in batches)

    def test_a_row_has_times_per_batch_and_per_frame(self, report):
        first = report.results[0]
        result = dataclasses.replace(first, batch=4, scopes={"engine": summarize([80.0] * 20, 4)})
        table = result_table(dataclasses.replace(report, results=(result,)))
        row = dict(zip(table.columns, table.rows[0], strict=True))
        cells = [row[name] for name in ("batch", "scope", "p50", "ms/frame", "FPS")]
        assert cells == ["4", "engine", "80.0", "20.0", "50.0"]

    @pytest.mark.parametrize(
        ("ms", "word"), [pytest.param(60.0, "PASS", id="66"), pytest.param(70.0, "MISS", id="57")]
    )
    def test_the_verdict_counts_frames(self, report, ms, word):
        first = report.results[0]
        result = dataclasses.replace(first, batch=4, scopes={"end to end": summarize([ms] * 20, 4)})
        assert verdicts(dataclasses.replace(report, results=(result,)))[0].startswith(word)

    def test_a_fixed_batch_is_filled_without_an_option(self, make_artefact, quick, seen):
        path = make_artefact(batch=BatchRange(4, 4, 4))
        options = BenchOptions(backends=["null"], config=quick)
        (result,) = bench_models([path], load_frames(None, SIZE), options).results
        assert (result.batch, result.scopes["engine"].frames) == (4, 4)
        assert any(len({frame.tobytes() for frame in batch}) == 4 for batch in seen)

    def test_the_files_know_the_batch(self, make_artefact, invoke, tmp_path):
        files = {name: tmp_path / f"r.{name}" for name in ("json", "csv", "markdown", "html")}
        words = [word for name, path in files.items() for word in (f"--{name}", path)]
        done = invoke(
            "esnet-bench", make_artefact(), *QUICK, "--backend", "null", "--batch", "1,4", *words
        )
        assert done.returncode == 0, done.stderr
        content = json.loads(files["json"].read_text())
        assert content["schema"] == 5
        assert [result["batch"] for result in content["results"]] == [1, 4]
        with files["csv"].open() as stream:
            assert [row["batch"] for row in csv.DictReader(stream)] == ["1", "1", "4", "4"]
        for name in ("markdown", "html"):
            assert "with null fp32, batch 4" in files[name].read_text()
        assert invoke("esnet-bench", "diff", files["json"], files["json"]).returncode == 0

    @pytest.mark.parametrize("mode", ["latency", "throughput"])
    def test_a_size_out_of_range_is_refused_with_the_export(self, make_artefact, invoke, mode):
        path = make_artefact(batch=BatchRange(1, 2, 4), optimized_for="openvino")
        done = invoke("esnet-bench", path, "--mode", mode, "--batch", "1,4,8")
        assert done.returncode == 2
        assert f"{path} takes batches of 1 to 4" in done.stderr
        hint = "hint: esnet-export to-onnx WEIGHTS --optimize-for openvino --batch 1:4:8"
        assert hint in done.stderr


def test_help_defines_every_scope(invoke, monkeypatch):
    for name, value in {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    text = invoke("esnet-bench", "--help").stdout
    assert all(f"{scope}: {definition}" in text for scope, definition in SCOPES.items())


def test_help_lists_the_other_commands(invoke):
    text = invoke("esnet-bench", "--help").stdout
    assert "esnet-bench [run] [OPTIONS]" in text
    assert all(f"\u2502 {name} " in text for name in ("roofline", "compare", "diff"))


def test_a_model_may_have_the_name_of_a_command(invoke, tmp_path):
    (tmp_path / "dif").touch()
    done = invoke("esnet-bench", "dif", cwd=tmp_path)
    assert done.stderr.startswith("error: dif is empty")


def test_the_report_defines_its_scopes_and_names_the_one_that_a_cpu_lacks(report):
    lines = notes(report)
    assert f"engine: {SCOPES['engine']}." in lines
    assert "pinned: does not exist on a CPU." in lines


def test_the_table_is_written_for_spreadsheets_and_papers(report, tmp_path):
    write_csv(tmp_path / "r.csv", result_table(report))
    rows = list(csv.reader((tmp_path / "r.csv").open()))
    assert rows[0][:4] == ["model", "batch", "scope", "n"]
    assert [row[0] for row in rows[1:3]] == [report.results[0].model.name] * 2
    assert "| model | batch | scope |" in markdown_from_document(document_from_report(report))


def test_the_verdict_names_device_target_and_its_source(report):
    text = verdicts(report)[0]
    for part in (report.results[0].model.device, "63 FPS", "15.87 ms", "GTX 1080 Ti"):
        assert part in text


@pytest.mark.parametrize(
    ("times", "word"),
    [
        pytest.param([10.0] * 20, "PASS", id="fast"),
        pytest.param([20.0] * 20, "MISS", id="slow"),
        pytest.param([15.0] * 11 + [17.0] * 9, "MISS", id="median fast, interval not"),
    ],
)
def test_the_target_is_met_only_with_the_whole_interval(report, times, word):
    result = with_scope(report.results[0], "end to end", times)
    assert verdicts(dataclasses.replace(report, results=(result,)))[0].startswith(word)


def test_few_samples_are_said(report):
    assert any("p99 n/a" in note for note in notes(report))


def test_an_unstable_row_is_marked(report):
    first = with_scope(report.results[0], "engine", [10.0] * 10 + [20.0] * 10)
    steady = with_scope(first, "end to end", [10.0] * 20)
    shown = dataclasses.replace(report, results=(steady,))
    table = result_table(shown)
    column = table.columns.index("95 % CI")
    assert [row[column].startswith("~") for row in table.rows] == [True, False]
    assert any(note.startswith("~ unstable") for note in notes(shown))


def test_the_report_names_machine_libraries_and_frames(report, capsys):
    print_document(document_from_report(report))
    text = capsys.readouterr().out
    for part in (
        "cpu",
        "libraries",
        "onnxruntime",
        "generated street scenes",
        "revision",
        "peak RSS",
    ):
        assert part in text


def test_the_json_holds_every_figure(report, tmp_path):
    path = tmp_path / "report.json"
    write_json(path, report.as_dict())
    content = json.loads(path.read_text())
    first = report.results[0]
    assert content["results"][0]["scopes"]["end to end"]["p50"] == first.scopes["end to end"].p50
    assert content["results"][0]["model"]["sha256"] == first.model.sha256
    assert content["environment"]["cpu"]


def test_real_frames_are_said_to_be_resized(tmp_path):
    write_image(tmp_path / "a.png", street_scene((32, 48)).image)
    assert "resized from 32x48" in load_frames(tmp_path, SIZE).description


def test_native_frames_keep_their_size(tmp_path):
    write_image(tmp_path / "a.png", street_scene((32, 48)).image)
    assert load_frames(tmp_path, None).frames[0].shape == (32, 48, 3)


def test_an_unreadable_source_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(BenchmarkError, match=r"a\.png cannot be read"):
        load_frames(tmp_path, SIZE)


def test_a_missing_source_is_an_error(tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        load_frames(tmp_path / "nothing", SIZE)


QUICK = ("--max-seconds", "0.1", "--size", "64x128")


def test_the_default_command_prints_a_verdict_and_needs_no_torch(make_artefact, tmp_path):
    path = tmp_path / "r.json"
    # Started by a shell: Linux counts the memory of the process that starts a command to its peak.
    words = command_line("esnet-bench", make_artefact(), *QUICK, "--json", path)
    result = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *words], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "PASS" in result.stdout or "MISS" in result.stdout
    content = json.loads(path.read_text())
    assert content["peak_memory_bytes"] < 1.5e9


@pytest.mark.parametrize(
    ("fps", "code"), [pytest.param("1", 0, id="reached"), pytest.param("1000000", 1, id="missed")]
)
def test_assert_decides_the_exit_code(make_artefact, invoke, fps, code):
    arguments = (make_artefact(), *QUICK, "--target-fps", fps, "--assert")
    assert invoke("esnet-bench", *arguments).returncode == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["nothing.onnx"], "does not exist", id="missing model"),
        pytest.param(["{model}", "--frames", "nowhere"], "does not exist", id="missing frames"),
        pytest.param(["{model}", "--size", "big"], "HEIGHTxWIDTH", id="bad size"),
        pytest.param(["{model}", "--backend", "cuda"], "unknown backend", id="unknown backend"),
        pytest.param(
            ["{model}", "--precision", "fp8"], "cannot run fp8", id="impossible precision"
        ),
        pytest.param(
            ["{model}", "--json", "no/such/r.json"], "does not exist", id="no report folder"
        ),
        pytest.param(["{model}", "--html", "."], "output . is a folder", id="folder as report"),
        pytest.param(["{model}", "--csv", "/proc/r.csv"], "/proc", id="unwritable"),
        pytest.param(["{model}", "--target-fps", "0"], "greater than", id="target of nothing"),
        pytest.param(["{model}", "--mode", "burst"], "unknown mode 'burst'", id="mode"),
        pytest.param(["{model}", "--mode", "camera:0"], "must be above 0 FPS", id="camera"),
        pytest.param(["{model}", "--batch", "1,x"], "'1,x' is not a list", id="batch"),
        pytest.param(
            ["{model}", "--mode", "camera", "--batch", "1"],
            "one frame at a time",
            id="camera batch",
        ),
        pytest.param(["{model}", "--reference", "no.onnx"], "no.onnx", id="reference"),
        pytest.param(["{model}", "--data", "nowhere"], "nowhere", id="data"),
        pytest.param(["diff", "a.json", "b.json"], "a.json cannot be read", id="diff"),
        pytest.param(["diff", "a.json"], "missing argument 'after'", id="diff of one"),
        pytest.param(["dif", "a.json"], "no such command 'dif'. Did you mean 'diff'?", id="typo"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(make_artefact, invoke, arguments, message):
    words = [word.format(model=make_artefact()) for word in arguments]
    quickly = [] if words[0].startswith("dif") else ["--max-seconds", "0.2"]
    result = invoke("esnet-bench", *words, *quickly)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


class TestOnAGpu:
    """Device and host timings, with a fake backend that has a ring of slots."""

    class Ring:
        num_slots = 3

        def stage_times_ms(self):
            return (0.2, 0.01, 0.1)

    @pytest.fixture
    def timed(self, make_artefact, quick, monkeypatch):
        monkeypatch.setattr(NullBackend, "ring", self.Ring(), raising=False)
        options = BenchOptions(backends=["null"], config=quick)
        return bench_models([make_artefact()], load_frames(None, SIZE), options)

    def test_one_call_gives_three_scopes(self, timed):
        scopes = timed.results[0].scopes
        assert list(scopes) == ["engine", "pinned", "host", "end to end"]
        assert scopes["engine"].p50 == 0.01
        assert scopes["pinned"].p50 == pytest.approx(0.2 + 0.01 + 0.1)
        assert scopes["engine"].n == scopes["pinned"].n == scopes["host"].n
        (breakdown,) = timed.stages.values()
        stages = breakdown.stages_ms
        assert (stages["copy in"], stages["engine"], stages["copy out"]) == (0.2, 0.01, 0.1)

    def test_throughput_runs_from_pinned_memory_too(self, make_artefact, quick, timed):
        options = BenchOptions(mode="throughput", backends=["null"], batches=(4,), config=quick)
        report = bench_models([make_artefact()], load_frames(None, SIZE), options)
        assert list(report.results[0].scopes) == ["host", "pinned", "end to end"]

    def test_clocks_that_disagree_are_told(self, timed):
        slow = with_scope(timed.results[0], "pinned", [1e3] * 20)
        disagreeing = dataclasses.replace(timed, results=(slow,))
        assert any(note.startswith("clocks disagree") for note in notes(disagreeing))
