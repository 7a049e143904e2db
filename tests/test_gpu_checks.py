"""The GPU tests without a GPU: overlap, timing, result files, and their script.

``tests/gpu_rules`` runs their checks of the ring and the backends over the stub of the driver.
"""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.timing.latency import TimingConfig
from esnet.data.scenes import street_scene
from tests.gpu import checks
from tests.gpu.overlap import overlap_of

ROOT = Path(__file__).parents[1]
GPU_TESTS = ROOT / "tests" / "gpu"
SIZE_HW = (8, 16)
QUICK = TimingConfig(
    warmup_cap_seconds=0.001, min_seconds=0, min_samples=5, block_seconds=0.01, cap_seconds=0.1
)


@pytest.fixture
def figures():
    return {}


@pytest.fixture
def frames():
    return list(np.random.default_rng(0).integers(0, 256, (3, *SIZE_HW, 3), np.uint8))


def first_bytes(frame):
    return frame.reshape(-1)[: SIZE_HW[0] * SIZE_HW[1]].reshape(SIZE_HW)


def test_three_batch_sizes_are_recorded(make_artefact, figures):
    frames = [street_scene((64, 128), seed=seed).image for seed in range(8)]
    checks.record_bench(make_artefact(), "null", frames, figures.update, QUICK)
    assert list(figures) == ["batch_1", "batch_4", "batch_8"]
    assert all(timed["engine"]["fps"] > 0 for timed in figures.values())


@pytest.mark.parametrize(
    ("batches", "compute_ms", "overlap"),
    [
        pytest.param([(0, 1, 2, 3), (3, 4, 5, 6)], 1, 0.0, id="one-after-another"),
        pytest.param([(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)], 1, 3 / 5, id="pipelined"),
        pytest.param([(0, 1, 5, 6), (1, 2, 9, 10), (2, 3, 13, 14)], 4, 4 / 14, id="compute-bound"),
        pytest.param([(0, 1, 2, 3), (0, 4, 5, 6), (0, 7, 8, 9)], 1, 0.0, id="queued-copies"),
        pytest.param([(0, 1, 2, 3), (0, 1.5, 5, 6), (0, 2, 8, 9)], 1, 1 / 7, id="queued-compute"),
        pytest.param([], 1, 0.0, id="nothing"),
    ],
)
def test_overlap_is_work_at_the_same_time(batches, compute_ms, overlap):
    """The sum of all stage times over the wall time would be above 1 in both queues."""
    assert overlap_of(batches, (1, compute_ms, 1)) == pytest.approx(overlap)


def test_pipelines_are_timed_and_compared(frames, figures):
    def slow(frame):
        time.sleep(0.001)  # without it, a time may be rounded to 0
        return first_bytes(frame)

    pipelines = {
        checks.REFERENCE: slow,
        checks.BASELINE: slow,
        "ours": lambda frame: slow(frame) ^ 1,
    }
    with pytest.raises(AssertionError, match=r"share of equal ones: \{'ours': 0\.0\}"):
        checks.time_pipelines(pipelines, frames, figures.update, QUICK)
    result = figures["latency"]
    assert list(result) == list(pipelines)
    assert result[checks.BASELINE]["speed_to_torch_eager_fp16"] == 1.0
    assert [result[name]["labels_equal_to_torch_fp32"] for name in pipelines] == [1.0, 1.0, 0.0]
    assert all(timed["p50_ms"] >= 1 for timed in result.values())


def test_every_name_that_the_gpu_tests_import_exists():
    """Their fixtures import inside, where collecting without a GPU does not reach."""
    ours = ("benchmarks", "esnet", "export", "runtime", "tests")
    names = [
        (node.module, alias.name)
        for path in GPU_TESTS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ours
        for alias in node.names
    ]
    assert ("benchmarks.baselines.pipelines", "torch_pipeline") in names
    missing = [f"{m}.{n}" for m, n in names if not hasattr(importlib.import_module(m), n)]
    assert missing == []


def without_gpu(**variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ESNET_")}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **variables}


def run(*command, **variables):
    environment = without_gpu(**variables)
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def run_pytest(folder, *arguments, **variables):
    options = (*arguments, "-q", "-rs", "-p", "no:cacheprovider", f"--confcutdir={folder}")
    return run(sys.executable, "-m", "pytest", *options, str(folder), **variables)


def results_in(folder):
    return json.loads((folder / "gpu_check.json").read_text())["results"]


def test_without_a_gpu_the_tests_skip_with_the_reason():
    result = run_pytest(GPU_TESTS)
    assert result.returncode == 0, result.stdout
    assert "no GPU can be used: " in result.stdout
    assert " skipped in " in result.stdout
    assert " passed" not in result.stdout


def test_the_script_fails_without_a_gpu_and_writes_the_reason(tmp_path):
    out = tmp_path / "new" / "results"
    command = ("sh", "scripts/gpu_check.sh", "--out", str(out), "--quick", "-k", "copy or ring")
    result = run(*command, PYTHON=sys.executable)
    assert result.returncode == 1, result.stdout + result.stderr
    results = results_in(out)
    assert len(results) >= 10
    assert {entry["status"] for entry in results.values()} == {"failed"}
    assert all("no GPU can be used: " in entry["reason"] for entry in results.values())
    assert "test_gpu_ring-test_every_frame_comes_back-pycuda-graphs-batch8" in results
    table = (out / "gpu_check.md").read_text()
    assert "| ring: every frame comes back-pycuda-graphs-batch8 | failed | " in table


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        pytest.param([], "--out DIR is missing", 2, id="no-out"),
        pytest.param(["--out"], "--out needs a value", 2, id="no-value"),
        pytest.param(["--out", "r", "--minutes", "1.5"], "1.5 is not a whole", 2, id="minutes"),
        pytest.param(["--out", "results"], "has no pytest", 3, id="no-pytest"),
    ],
)
def test_the_script_says_what_is_missing(tmp_path, arguments, message, code):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    result = subprocess.run(
        ["sh", str(ROOT / "scripts" / "gpu_check.sh"), *arguments],
        env={**without_gpu(PYTHONPATH=""), "PYTHON": str(python)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert message in result.stderr
    assert result.returncode == code


def test_the_script_ends_after_ten_minutes(tmp_path):
    timeout = tmp_path / "timeout"
    timeout.write_text('#!/bin/sh\necho "$@" "for $ESNET_GPU_MINUTES minutes"\n')
    timeout.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = ("sh", "scripts/gpu_check.sh", "--out", str(tmp_path / "out"))
    limits = "--foreground --signal=INT --kill-after=30"
    for arguments, minutes in (((), 10), (("--minutes", "3"), 3)):
        result = run(*command, *arguments, PYTHON=sys.executable, PATH=path)
        assert result.stdout.startswith(f"{limits} {minutes}m {sys.executable} -m pytest tests/gpu")
        assert result.stdout.endswith(f" for {minutes} minutes\n")


def test_what_has_no_time_left_is_left_to_the_next_run(tmp_path):
    tests, results = tmp_path / "tests", tmp_path / "results"
    tests.mkdir()
    shutil.copy(GPU_TESTS / "conftest.py", tests)
    (tests / "test_two.py").write_text(
        "import time\ndef test_first(): time.sleep(1)\ndef test_second(): pass\n"
    )
    variables = {"ESNET_GPU_RESULTS": str(results), "ESNET_GPU_MINUTES": str(1 / 60)}
    first = run_pytest(tests, **variables)
    assert "no time left: run the same command again" in first.stdout
    assert list(results_in(results)) == ["test_two-test_first"]
    run_pytest(tests, **{**variables, "ESNET_GPU_MINUTES": "10"})
    assert {entry["status"] for entry in results_in(results).values()} == {"passed"}
    assert list(results_in(results)) == ["test_two-test_first", "test_two-test_second"]


def test_all_figures_are_in_one_table(tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(GPU_TESTS / "conftest.py", tests)
    (tests / "test_gpu_small.py").write_text(
        "def test_fast_things(record):\n"
        "    record(batch_4={'engine': {'fps': 9.5}}, notes=['a', 'b'], share=None)\n"
        "def test_slow(): assert False, 'x | y'\n"
    )
    run_pytest(tests, ESNET_GPU_RESULTS=str(tmp_path))
    lines = (tmp_path / "gpu_check.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows[:2] == ["| test | figure | value |", "|---|---|---:|"]
    assert rows[2].startswith("| small: fast things | passed | ")
    assert rows[3:6] == [
        "|  | batch 4, engine, fps | 9.5 |",
        "|  | notes | a, b |",
        "|  | share | None |",
    ]
    assert rows[6].startswith("| small: slow | failed | ")
    assert rows[7].startswith("|  | reason | AssertionError: x / y")


def test_results_are_recorded_and_a_second_run_continues(tmp_path):
    tests, results = tmp_path / "tests", tmp_path / "results"
    tests.mkdir()
    shutil.copy(GPU_TESTS / "conftest.py", tests)
    (tests / "test_small.py").write_text(
        "import os, pathlib, pytest\n"
        "def note(name):\n"
        "    with pathlib.Path(os.environ['CALLS']).open('a') as file: file.write(name + '\\n')\n"
        "def test_good(record): note('good'); record(value=7)\n"
        "def test_bad(record):\n"
        "    note('bad'); record(value=8)\n"
        "    assert os.environ.get('REPAIRED'), 'broken ring'\n"
        "def test_absent(): pytest.skip('no TensorRT')\n"
    )
    variables = {"ESNET_GPU_RESULTS": str(results), "CALLS": str(tmp_path / "calls")}
    first = run_pytest(tests, **variables)
    assert first.returncode == 1, first.stdout
    good, bad, absent = (
        json.loads((results / f"test_small-test_{name}.json").read_text())
        for name in ("good", "bad", "absent")
    )
    assert (good["status"], good["figures"]) == ("passed", {"value": 7})
    assert (bad["status"], bad["figures"]) == ("failed", {"value": 8})
    assert "broken ring" in bad["reason"]
    assert (absent["status"], absent["reason"]) == ("skipped", "no TensorRT")
    assert all(entry["seconds"] >= 0 for entry in (good, bad, absent))

    second = run_pytest(tests, REPAIRED="1", **variables)
    assert second.returncode == 0, second.stdout
    assert f"already passed in {results}" in second.stdout
    assert (tmp_path / "calls").read_text().split() == ["good", "bad", "bad"]
    assert {name: entry["status"] for name, entry in results_in(results).items()} == {
        "test_small-test_absent": "skipped",
        "test_small-test_bad": "passed",
        "test_small-test_good": "passed",
    }
    assert "reason" not in results_in(results)["test_small-test_bad"]

    path = results / "test_small-test_good.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "another"}))
    run_pytest(tests, REPAIRED="1", **variables)
    assert (tmp_path / "calls").read_text().split()[3:] == ["good"]
    assert "cpu" in json.loads((results / "gpu_check.json").read_text())["environment"]


@pytest.mark.parametrize(
    ("variables", "options", "code"),
    [
        pytest.param({"ESNET_REQUIRE_GPU": "1"}, (), 1, id="required"),
        pytest.param({"ESNET_REQUIRE_GPU": "1"}, ("-k", "not test_idle"), 0, id="left-out"),
        pytest.param({}, (), 0, id="not-required"),
    ],
)
def test_a_file_of_which_no_test_ran_fails_where_a_gpu_is_required(
    tmp_path, variables, options, code
):
    shutil.copy(GPU_TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_idle.py").write_text(
        "import pytest\n"
        "def test_one(): pytest.skip('no TensorRT')\n"
        "def test_two(): pytest.skip('no TensorRT')\n"
    )
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_one(): pass\ndef test_two(): pytest.skip('no PyCUDA')\n"
    )
    for _ in range(2):  # the second time, what ran has passed already
        result = run_pytest(tmp_path, *options, ESNET_GPU_RESULTS=str(tmp_path), **variables)
        assert result.returncode == code, result.stdout
        line = "no test of test_idle ran: no TensorRT; to leave it out: -k 'not test_idle'"
        assert (line in result.stdout) is (code == 1)
        assert "no test of test_some" not in result.stdout


def test_a_broken_library_is_an_error_and_a_missing_one_a_skip(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise ImportError('libx.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pytest.skip.Exception, match="no_such_library is not installed"):
        checks.import_or_skip("no_such_library")
    with pytest.raises(ImportError, match="libx"):
        checks.import_or_skip("broken_library")
