"""Throughput, camera, and the label reference of a model."""

from __future__ import annotations

import dataclasses
import itertools
import time
from contextlib import ExitStack
from types import SimpleNamespace

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
from benchmarks.timing import throughput
from benchmarks.timing.camera import measure_camera
from benchmarks.timing.latency import TimingConfig
from benchmarks.timing.suite import bench_models
from benchmarks.timing.throughput import measure_rate
from export.metadata import with_card
from runtime.artefact.card import ModelCard

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
    model = OpenModel(SimpleNamespace(segment=segment), NOBODY, [1])
    return measure_camera(model, frames, fps, seconds)


@pytest.fixture(scope="module")
def frames() -> FrameSet:
    return load_frames(None, SIZE)


class TestRate:
    """The clock moves only with the batches, so that no test depends on the machine's own pace."""

    @pytest.fixture
    def stream(self, monkeypatch):
        """Make a stream whose batches take so many seconds, in a cycle."""
        now = 0.0
        monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now))

        def batches(*seconds: float):
            nonlocal now
            for each in itertools.cycle(seconds):
                now += each
                yield

        return batches

    def test_it_is_frames_over_time(self, stream, quick):
        rate = measure_rate(stream(0.25), 4, quick, in_flight=1)
        assert rate.fps == pytest.approx(4 / 0.25)
        assert rate.seconds == rate.n * 0.25

    def test_the_interval_is_that_of_the_rate(self, stream):
        """The median of these times says 10 FPS, the rate is 5.3."""
        config = TimingConfig(warmup_calls=1, min_seconds=0, min_samples=300, cap_seconds=1e9)
        rate = measure_rate(stream(0.1, 0.1, 0.1, 0.1, 0.54), 1, config, in_flight=1)
        assert rate.fps == pytest.approx(5 / 0.94)
        assert rate.fps_low <= rate.fps <= rate.fps_high < 6

    def test_batches_that_finish_together_do_not_widen_the_interval(self, stream):
        config = TimingConfig(warmup_calls=1, min_seconds=0, min_samples=24, cap_seconds=1e9)
        rate = measure_rate(stream(1.0, 0.0, 0.0), 1, config, in_flight=3)
        assert (rate.fps_low, rate.fps_high) == pytest.approx((3.0, 3.0))

    def test_the_warm_up_does_not_count(self, stream):
        config = TimingConfig(
            warmup_calls=3, warmup_cap_seconds=1e9, min_seconds=0, min_samples=2, cap_seconds=1e9
        )
        rate = measure_rate(stream(5.0, 5.0, 5.0, 1.0, 1.0, 9.0), 1, config, in_flight=1)
        assert (rate.n, rate.fps) == (2, 1.0)

    def test_the_cap_ends_a_slow_stream(self, stream):
        rate = measure_rate(stream(8.0), 1, TimingConfig(cap_seconds=20.0), in_flight=1)
        assert rate.n == 3

    def test_the_stream_is_closed_also_after_an_error(self, quick):
        ended = []

        def batches(error: Exception | None):
            try:
                while True:
                    if error:
                        raise error
                    yield
            finally:
                ended.append(error)

        failure = RuntimeError("the engine is gone")
        measure_rate(batches(None), 1, quick, in_flight=1)
        with pytest.raises(RuntimeError, match="the engine is gone"):
            measure_rate(batches(failure), 1, quick, in_flight=1)
        assert ended == [None, failure]


def test_throughput_of_several_batch_sizes_on_a_real_backend(make_artefact, frames, quick):
    options = BenchOptions(mode="throughput", backends=["openvino"], batches=(1, 4), config=quick)
    report = bench_models([make_artefact()], frames, options)
    assert [result.batch for result in report.results] == [1, 4]
    assert all(list(result.scopes) == ["host", "end to end"] for result in report.results)
    assert "FPS sustained end to end" in verdicts(report)[0]
    assert [row[1:4] for row in result_table(report).rows] == [
        [batch, str(report.results[0].in_flight), scope]
        for batch in ("1", "4")
        for scope in ("host", "end to end")
    ]


def test_the_verdict_on_a_rate_uses_the_interval(make_artefact, frames, quick):
    options = BenchOptions(mode="throughput", backends=["null"], config=quick)
    report = bench_models([make_artefact()], frames, options)
    (result,) = report.results
    rate = dataclasses.replace(result.scopes["end to end"], fps=64.0, fps_low=62.0, fps_high=66.0)
    unsure = dataclasses.replace(result, scopes={"end to end": rate})
    assert verdicts(dataclasses.replace(report, results=(unsure,)))[0].startswith("MISS: 64.0 FPS")


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
