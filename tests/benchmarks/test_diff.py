"""``esnet-bench diff``: a planted slow-down is caught, noise is not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError, TargetMissed
from benchmarks.report.diff import diff_reports, diff_table
from benchmarks.session import run_diff
from benchmarks.timing.statistics import summarize


def report_of(path: Path, ms: float, *, seed: int, mode: str = "latency", **more) -> Path:
    """Write a report of 300 noisy samples around a time."""
    noise = random.Random(seed)
    summary = summarize([ms * noise.gauss(1, 0.03) for _ in range(300)])
    plain = {"p50": summary.p50, "p50_low": summary.p50_low, "p50_high": summary.p50_high}
    result = {"name": "model", "sha256": "a" * 64, "engine": plain, "end_to_end": plain}
    content = {"mode": mode, "frames": "f", "environment": {"cpu": "c"}, "results": [result]}
    path.write_text(json.dumps({**content, **more}))
    return path


def test_a_slow_down_of_a_tenth_is_caught(tmp_path, capsys):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 110, seed=2)
    with pytest.raises(TargetMissed, match="2 of 2 figures are slower by more than 5 %"):
        run_diff(before, after, max_slower=0.05)
    assert "SLOWER" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_equal_runs_pass(tmp_path, seed):
    before = report_of(tmp_path / "a.json", 100, seed=seed)
    after = report_of(tmp_path / "b.json", 100, seed=seed + 100)
    run_diff(before, after, max_slower=0.05)


def test_a_slow_down_within_the_limit_passes(tmp_path):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 104, seed=2)
    difference = diff_reports(before, after, 0.05)
    assert not any(change.is_slow_down for change in difference.changes)
    assert diff_table(difference).rows[0][-1] == "within limit"


def test_a_slower_machine_is_told_from_a_slower_model(tmp_path):
    def paced(name: str, ms: float, pace: float) -> Path:
        return report_of(tmp_path / name, ms, seed=1, machine_reference={"p50": pace})

    before = paced("a.json", 100, 5.0)
    machine = diff_reports(before, paced("b.json", 119, 5.9), 0.05)
    assert not any(change.is_slow_down for change in machine.changes)
    assert diff_table(machine).rows[0][-1] == "machine slower"
    assert "the machine itself: the same computation took +18.0 % time" in machine.warnings
    model = diff_reports(before, paced("c.json", 119, 5.0), 0.05)
    assert all(change.is_slow_down for change in model.changes)


def test_an_unstable_run_is_warned_of(tmp_path):
    shaky = {"p50": 100, "p50_low": 90, "p50_high": 110, "is_stable": False}
    results = [{"name": "model", "engine": shaky}]
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 100, seed=1, results=results)
    assert any(
        "its run was unstable" in line for line in diff_reports(before, after, 0.05).warnings
    )


def test_a_rate_is_slower_when_it_falls(tmp_path):
    def rates(fps: float) -> list:
        rate = {"fps": fps, "fps_low": fps * 0.99, "fps_high": fps * 1.01}
        return [{"name": "model", "engine": rate}]

    before = report_of(tmp_path / "a.json", 1, seed=1, mode="throughput", results=rates(100))
    after = report_of(tmp_path / "b.json", 1, seed=1, mode="throughput", results=rates(80))
    change = diff_reports(before, after, 0.05).changes[0]
    assert change.is_slow_down
    assert change.slower == pytest.approx(0.25)


def test_what_else_differs_is_said(tmp_path):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    after = report_of(tmp_path / "b.json", 100, seed=1, frames="g", environment={"cpu": "d"})
    warnings = diff_reports(before, after, 0.05).warnings
    assert warnings == ("frames: f before, g after", "cpu: c before, d after")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "cannot be read as JSON", id="empty"),
        pytest.param("[]", "is not a report of esnet-bench", id="list"),
        pytest.param('{"mode": "camera", "results": []}', "b.json of camera", id="other"),
        pytest.param('{"mode": "latency", "results": []}', "no figure in common", id="nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, text, message):
    before = report_of(tmp_path / "a.json", 100, seed=1)
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        diff_reports(before, tmp_path / "b.json", 0.05)
