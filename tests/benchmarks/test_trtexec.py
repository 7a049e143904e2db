"""trtexec's definitions of latency, and reading what it prints."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.frames import load_frames
from benchmarks.timing.suite import BenchOptions, bench_models
from benchmarks.timing.trtexec import (
    TRTEXEC_10,
    TRTEXEC_11,
    arguments_for,
    cross_check,
    explain,
    parse_output,
    preset_ms,
)
from runtime.artefact.card import BatchRange, ModelCard

# The lines of trtexec 10.3's summary, as its sampleReporting.cpp prints them, less dates and percentiles.
SUMMARY = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=m.engine
[I] === Performance summary ===
[I] Throughput: 214.83 qps
[I] Latency: min = 4.61 ms, max = 6.02 ms, mean = 4.90 ms, median = 4.85 ms
[I] Enqueue Time: min = 0.2 ms, max = 0.9 ms, mean = 0.3 ms, median = 0.25 ms
[I] H2D Latency: min = 0.1 ms, max = 0.2 ms, mean = 0.15 ms, median = 0.14 ms
[I] GPU Compute Time: min = 4.4 ms, max = 5.8 ms, mean = 4.7 ms, median = 4.66 ms
[I] D2H Latency: min = 0.04 ms, max = 0.1 ms, mean = 0.05 ms, median = 0.05 ms
&&&& PASSED TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=m.engine
"""


@pytest.fixture
def card(make_artefact) -> ModelCard:
    return ModelCard.from_file(make_artefact(batch=BatchRange(1, 2, 4)))


def test_latency_is_with_copies_up_to_10_and_without_from_11_on():
    assert preset_ms(TRTEXEC_10, (1.0, 5.0, 0.5)) == 6.5
    assert preset_ms(TRTEXEC_11, (1.0, 5.0, 0.5)) == 5.0


def test_its_summary_is_read():
    found = parse_output(SUMMARY, TRTEXEC_10, "trtexec")
    assert (found.latency_ms, found.compute_ms, found.qps) == (4.85, 4.66, 214.83)


def test_a_summary_without_figures_is_refused():
    with pytest.raises(BenchmarkError, match="printed no figures"):
        parse_output("&&&& FAILED", TRTEXEC_10, "trtexec")


@pytest.mark.parametrize(
    ("preset", "major", "flag"),
    [
        (TRTEXEC_10, 11, "--includeDataTransfers"),
        (TRTEXEC_10, 11, "--noCudaGraph"),
        (TRTEXEC_11, 10, "--useCudaGraph"),
        (TRTEXEC_11, 8, "--noDataTransfers"),
    ],
)
def test_a_version_is_made_to_measure_by_the_others_definition(card, preset, major, flag):
    assert flag in arguments_for(Path("m.engine"), card, preset, major=major)


def test_its_own_definition_needs_no_flags_and_the_batch_is_ours(card):
    words = arguments_for(Path("m.engine"), card, TRTEXEC_10, major=10)
    height, width = card.size_hw
    assert f"--shapes=frames:2x{height}x{width}x3" in words
    assert not [word for word in words if "Graph" in word or "Transfers" in word]


def fake_trtexec(folder: Path, summary: str, code: int = 0) -> None:
    program = folder / "trtexec"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{summary}\nEOF\nexit {code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_it_is_run_where_it_is_installed(card, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_trtexec(tmp_path, SUMMARY)
    found = cross_check(tmp_path / "m.engine", card, TRTEXEC_11)
    assert found.latency_ms == 4.85
    assert "--useCudaGraph" in found.command
    assert "(+3.1 %)" in explain(5.0, found, TRTEXEC_11)


def test_its_failure_is_told(card, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_trtexec(tmp_path, "[E] Engine deserialization failed", 1)
    with pytest.raises(BenchmarkError, match="Engine deserialization failed"):
        cross_check(tmp_path / "m.engine", card, TRTEXEC_10)


def test_without_it_our_own_figure_stands_alone(card, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cross_check(tmp_path / "m.engine", card, TRTEXEC_10) is None
    assert "trtexec is not installed" in explain(5.0, None, TRTEXEC_10)


@pytest.mark.parametrize(
    ("preset", "message"),
    [("trtexec9", "unknown preset 'trtexec9'"), (TRTEXEC_10, "runs on a CPU")],
)
def test_a_preset_that_cannot_be_is_refused(make_artefact, quick, preset, message):
    options = BenchOptions(preset=preset, protocol=quick, backends=["onnxruntime"])
    with pytest.raises(BenchmarkError, match=message):
        bench_models([make_artefact()], load_frames(None, (64, 128)), options)
