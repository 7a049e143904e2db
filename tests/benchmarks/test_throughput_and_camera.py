"""Throughput, camera, and the label reference of a model."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from benchmarks.frames import FrameSet, load_frames
from benchmarks.models import (
    BenchOptions,
    ModelIdentity,
    OpenModel,
    find_reference,
    open_models,
    precisions_of,
)
from benchmarks.report.console import result_table, verdicts
from benchmarks.timing.camera import measure_camera
from benchmarks.timing.latency import TimingConfig
from benchmarks.timing.suite import bench_models
from benchmarks.timing.throughput import (
    Concurrency,
    _keep_full,
    measure_rate,
    possible_concurrencies,
)
from export.metadata import with_card
from runtime.artefact.card import BatchRange, ModelCard
from runtime.segmenter import Segmenter

SIZE = (64, 128)
NOBODY = ModelIdentity(
    file="m.onnx",
    sha256="0" * 64,
    name="m",
    backend="null",
    precision="fp32",
    device="none",
    size_hw=SIZE,
    reference=None,
    agreement=None,
    miou=None,
    advice=(),
)


def camera(segment, frames: FrameSet, *, fps: float, seconds: float):
    """Put a function that labels a frame behind a camera."""
    model = OpenModel(Path("m.onnx"), SimpleNamespace(segment=segment), NOBODY)
    return measure_camera(model, frames, fps, seconds)


@pytest.fixture(scope="module")
def frames() -> FrameSet:
    return load_frames(None, SIZE)


def rate_config(seconds: float) -> TimingConfig:
    return TimingConfig(min_seconds=seconds, min_samples=1, cap_seconds=1)


class TestRate:
    @pytest.mark.serial
    def test_it_is_frames_over_time(self):
        def pump():
            while True:
                time.sleep(0.01)
                yield 4

        rate = measure_rate([pump()], rate_config(0.3))
        assert rate.fps == pytest.approx(4 / 0.01, rel=0.25)
        assert rate.fps_low <= rate.fps_high
        assert rate.num_frames % 4 == 0

    @pytest.mark.serial
    def test_two_streams_add_up(self):
        def pump():
            while True:
                time.sleep(0.01)
                yield 1

        one, two = (measure_rate([pump() for _ in range(n)], rate_config(0.3)).fps for n in (1, 2))
        assert two > 1.5 * one

    def test_what_fails_in_a_stream_is_raised(self):
        def pump():
            yield 1
            raise RuntimeError("the engine is gone")

        with pytest.raises(RuntimeError, match="the engine is gone"):
            measure_rate([pump()], rate_config(1))

    @pytest.mark.serial
    def test_the_harness_adds_little(self):
        def pump():
            while True:
                yield 1

        assert measure_rate([pump()], rate_config(0.2)).fps > 10_000


class Ring:
    """A backend with slots that checks the order of calls."""

    def __init__(self, slots: int) -> None:
        self.slots, self.flying, self.most = slots, [], 0

    def submit(self, batch):
        assert len(self.flying) < self.slots
        self.flying.append(int(batch))
        self.most = max(self.most, len(self.flying))

    def collect(self):
        return (self.flying.pop(0),)


def test_every_slot_is_kept_in_flight_and_order_is_kept():
    ring, seen = Ring(3), []
    concurrency = Concurrency(streams=1, threads=None, batch=2, slots=3)
    rounds = _keep_full(
        ring,
        concurrency,
        prepare=lambda i: np.array(i),
        finish=lambda out, i: seen.append((out[0], i)),
    )
    assert [next(rounds) for _ in range(5)] == [2] * 5
    rounds.close()
    assert seen == [(i, i) for i in range(5)]
    assert ring.most == 3
    assert ring.flying == []


def test_cpu_streams_share_the_cores(make_artefact, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.throughput.num_cores", lambda: 8)
    with Segmenter.open(
        make_artefact(batch=BatchRange(1, 2, 4)), backend="onnxruntime"
    ) as segmenter:
        found = possible_concurrencies(segmenter)
    assert {(setting.streams, setting.threads) for setting in found} == {
        (1, 8),
        (2, 4),
        (4, 2),
        (8, 1),
    }
    assert {setting.batch for setting in found} == {1, 2, 4}


def test_throughput_is_measured_on_a_real_backend(make_artefact, frames, quick):
    options = BenchOptions(mode="throughput", backends=["onnxruntime"], config=quick)
    report = bench_models([make_artefact()], frames, options)
    result = report.results[0]
    assert result.scopes["engine"].fps > 0
    assert result.scopes["end to end"].num_frames >= result.concurrency.batch
    assert str(result.concurrency) in result.trials
    assert "FPS sustained end to end" in verdicts(report)[0]
    assert [row[1] for row in result_table(report).rows] == ["engine", "end to end"]


class TestCamera:
    @pytest.mark.serial
    def test_a_fast_model_labels_every_frame(self, frames):
        result = camera(lambda frame: None, frames, fps=100, seconds=0.3)
        assert (result.offered, result.done, result.dropped) == (30, 30, 0)
        assert result.scopes["age"].p50 < 10

    @pytest.mark.serial
    def test_a_slow_model_drops_the_oldest_and_its_ages_stay_bounded(self, frames):
        slow = camera(lambda frame: time.sleep(0.03), frames, fps=100, seconds=0.6)
        assert slow.dropped > 20
        assert slow.done + slow.dropped == slow.offered
        assert slow.missed == slow.done
        assert slow.scopes["age"].max < 150  # at most one frame waits: no queue grows
        assert not slow.keeps_up

    def test_what_fails_is_raised(self, frames):
        calls = []

        def segment(frame):
            calls.append(frame)
            if len(calls) > 7:
                raise RuntimeError("lost")

        with pytest.raises(RuntimeError, match="lost"):
            camera(segment, frames, fps=100, seconds=0.5)

    def test_it_is_a_mode_of_the_bench(self, make_artefact, frames, quick):
        options = BenchOptions(mode="camera", camera_fps=50, backends=["null"], config=quick)
        report = bench_models([make_artefact()], frames, options)
        assert report.results[0].offered == 25
        assert verdicts(report)[0].startswith(("PASS: 25 of 25", "MISS"))


def write_with_weights(path, output, sha256: str) -> None:
    """Copy an artefact and set the hash of its weights."""
    card = dataclasses.replace(ModelCard.from_file(path), source={"sha256": sha256})
    onnx.save(with_card(onnx.load(path), card), output)


class TestReference:
    def test_an_fp32_artefact_is_its_own(self, make_artefact):
        path = make_artefact()
        assert find_reference(path) == path

    def test_another_precision_finds_it_beside_by_the_hash_of_the_weights(
        self, make_artefact, tmp_path
    ):
        half, full = tmp_path / "half.onnx", tmp_path / "full.onnx"
        write_with_weights(make_artefact(precision="fp16"), half, "a" * 64)
        write_with_weights(make_artefact(), tmp_path / "another.onnx", "b" * 64)
        assert find_reference(half) is None
        write_with_weights(make_artefact(), full, "a" * 64)
        (tmp_path / "broken.onnx").write_bytes(b"no graph")
        assert find_reference(half) == full

    def test_int8_is_asked_for_no_other_precision(self, make_artefact, tmp_path):
        assert precisions_of(make_artefact(), ["fp32", "bf16"]) == ["fp32", "bf16"]

    def test_names_tell_files_apart(self, make_artefact, frames):
        with ExitStack() as stack:
            paths = [
                make_artefact(optimized_for="openvino"),
                make_artefact(optimized_for="tensorrt"),
            ]
            opened = open_models(paths, BenchOptions(backends=["onnxruntime"]), frames, stack)
            assert len({model.identity.name for model in opened}) == 2
