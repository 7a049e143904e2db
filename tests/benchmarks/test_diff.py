"""``esnet-bench diff``: a planted slow-down is caught, noise is not."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.cli import app
from benchmarks.errors import BenchmarkError, TargetMissed
from benchmarks.report.diff import diff_reports
from benchmarks.timing.statistics import summarize


def result_of(scopes: dict, sha256: str = "a" * 64) -> dict:
    return {"model": {"name": "model", "sha256": sha256}, "scopes": scopes}


def report_of(path: Path, ms: float, *, seed: int, mode: str = "latency", **more) -> Path:
    """Write a report of 300 noisy samples around a time."""
    noise = random.Random(seed)
    summary = summarize([ms * noise.gauss(1, 0.03) for _ in range(300)])
    plain = dataclasses.asdict(summary)
    result = result_of({"engine": plain, "end to end": plain})
    content = {"mode": mode, "frames": "f", "environment": {"cpu": "c"}, "results": [result]}
    path.write_text(json.dumps({**content, **more}))
    return path


def run_diff(before: Path, after: Path) -> Result:
    return CliRunner().invoke(app, ["diff", str(before), str(after), "--max-slower", "5%"])


def test_a_slow_down_of_a_tenth_is_caught(tmp_path):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 110, seed=2)
    result = run_diff(before, after)
    assert isinstance(result.exception, TargetMissed)
    assert "2 of 2 results are slower by more than 5 %" in str(result.exception)
    assert "SLOWER" in result.stdout


@pytest.mark.parametrize("seed", range(5))
def test_equal_runs_pass(tmp_path, seed):
    before = report_of(tmp_path / "a.json", 100, seed=seed)
    after = report_of(tmp_path / "b.json", 100, seed=seed + 100)
    result = run_diff(before, after)
    assert result.exit_code == 0, result.exception


def test_a_slow_down_within_the_limit_passes(tmp_path):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 104, seed=2)
    changes, _ = diff_reports(before, after, 0.05)
    assert [change.verdict for change in changes] == ["within limit"] * 2


def test_a_slower_machine_is_told_from_a_slower_model(tmp_path):
    def paced(name: str, ms: float, pace: float) -> Path:
        return report_of(tmp_path / name, ms, seed=1, machine_reference={"p50": pace})

    before = paced("a.json", 100, 5.0)
    changes, warnings = diff_reports(before, paced("b.json", 119, 5.9), 0.05)
    assert [change.verdict for change in changes] == ["machine slower"] * 2
    assert "machine: the time of the reference computation changed by +18.0 %" in warnings
    changes, _ = diff_reports(before, paced("c.json", 119, 5.0), 0.05)
    assert [change.verdict for change in changes] == ["SLOWER"] * 2


def test_an_unstable_run_is_warned_of(tmp_path):
    shaky = {"p50": 100, "p50_low": 90, "p50_high": 110, "is_stable": False}
    results = [result_of({"engine": shaky})]
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 100, seed=1, results=results)
    _, warnings = diff_reports(before, after, 0.05)
    assert any("unstable run, measure again" in line for line in warnings)


@pytest.mark.parametrize(
    "is_stable", [pytest.param((False, False), id="both"), pytest.param((True, False), id="one")]
)
def test_a_slow_down_of_an_unstable_run_is_inconclusive(tmp_path, is_stable):
    paths = []
    for name, ms, stable in zip("ab", (100, 166), is_stable, strict=True):
        run = {"p50": ms, "p50_low": ms * 0.99, "p50_high": ms * 1.01, "is_stable": stable}
        paths.append(
            report_of(tmp_path / f"{name}.json", ms, seed=1, results=[result_of({"engine": run})])
        )
    result = run_diff(*paths)
    assert result.exit_code == 0, result.exception
    assert "+66.0 %" in result.stdout
    assert "inconclusive" in result.stdout


def test_short_runs_on_a_busy_machine_are_never_slower(tmp_path):
    """20 pairs of runs of one model, with spells in which others take the cores."""
    random_ = random.Random(0)

    def busy_run(name: str) -> Path:
        samples: list[float] = []
        while len(samples) < 80:
            pace = random_.choice([1, 1, random_.uniform(1.2, 4)])
            samples += [10 * pace * random_.gauss(1, 0.03) for _ in range(random_.randint(5, 60))]
        results = [result_of({"engine": dataclasses.asdict(summarize(samples))})]
        return report_of(tmp_path / name, 10, seed=1, results=results)

    changes = [diff_reports(busy_run("a.json"), busy_run("b.json"), 0.05)[0][0] for _ in range(20)]
    assert max(abs(change.slower) for change in changes) > 0.5
    assert {change.verdict for change in changes} == {"same", "inconclusive"}


def test_a_rate_is_slower_when_it_falls(tmp_path):
    def rates(fps: float) -> list:
        rate = {"fps": fps, "fps_low": fps * 0.99, "fps_high": fps * 1.01, "is_stable": True}
        return [result_of({"engine": rate})]

    before = report_of(tmp_path / "a.json", 1, seed=1, mode="throughput", results=rates(100))
    after = report_of(tmp_path / "b.json", 1, seed=1, mode="throughput", results=rates(80))
    change = diff_reports(before, after, 0.05)[0][0]
    assert change.verdict == "SLOWER"
    assert change.slower == pytest.approx(0.25)


def test_batches_are_compared_per_frame_with_those_of_their_size(tmp_path):
    def with_batches(name: str, *ms_of_batch: tuple[int, float]) -> Path:
        results = []
        for batch, ms in ms_of_batch:
            summary = dataclasses.asdict(summarize([ms] * 20, batch))
            results.append({**result_of({"engine": summary}), "batch": batch})
        return report_of(tmp_path / name, 1, seed=1, results=results)

    before = with_batches("a.json", (1, 10.0), (4, 40.0))
    changes, warnings = diff_reports(before, with_batches("b.json", (4, 80.0), (8, 40.0)), 0.05)
    (change,) = changes
    assert (change.name, change.after.median) == ("model, batch 4, engine", 20.0)
    assert warnings == ["model, batch 1, engine: only before", "model, batch 8, engine: only after"]


def test_what_else_differs_is_said(tmp_path):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 100, seed=1, frames="g", environment={"cpu": "d"})
    _, warnings = diff_reports(before, after, 0.05)
    assert warnings == ["frames: f before, g after", "cpu: c before, d after"]


def test_different_files_are_warned_of(tmp_path):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    results = json.loads(before.read_text())["results"]
    results[0]["model"]["sha256"] = "b" * 64
    after = report_of(tmp_path / "b.json", 100, seed=1, results=results)
    _, warnings = diff_reports(before, after, 0.05)
    assert warnings == ["model: different files: aaaaaaaaaaaa before, bbbbbbbbbbbb after"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "cannot be read as JSON", id="empty"),
        pytest.param(None, "b.json cannot be read: No such file or directory", id="missing"),
        pytest.param("[]", "is not a report of esnet-bench", id="list"),
        pytest.param('{"mode": "camera", "results": []}', "b.json of camera", id="other"),
        pytest.param('{"mode": "latency", "results": []}', "no result in common", id="nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, text, message):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    if text is not None:
        (tmp_path / "b.json").write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        diff_reports(before, tmp_path / "b.json", 0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"mode": 5},
        {"results": 5},
        {"results": [{}]},
        {"results": [{"model": {"name": "a", "sha256": 5}, "scopes": {}}]},
        {"results": [result_of({"engine": {"p50": "fast"}})]},
        {"results": [result_of({"engine": {"fps": 0, "fps_high": 0, "fps_low": 0}})]},
        {"environment": []},
        {"machine_reference": {"p50": 0}},
        {"machine_reference": []},
    ],
    ids=str,
)
def test_a_damaged_report_is_one_line(tmp_path, change):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 100, seed=2, **change)
    for pair in ((before, after), (after, before)):
        with pytest.raises(BenchmarkError, match=r"b\.json is not a report of esnet-bench"):
            diff_reports(*pair, 0.05)


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff", b'{"mode": NaN}'])
def test_what_is_no_json_is_one_line(tmp_path, content):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    (tmp_path / "b.json").write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"b\.json cannot be read as JSON"):
        diff_reports(before, tmp_path / "b.json", 0.05)


@pytest.mark.parametrize("option", ["json", "csv", "markdown", "html"])
def test_a_report_does_not_replace_a_model(invoke, tmp_path, option):
    model = tmp_path / "m.onnx"
    model.write_text("model")
    ended = invoke("esnet-bench", model, f"--{option}", model)
    assert ended.returncode == 2
    assert "does not end in ." in ended.stderr
    assert model.read_text() == "model"
