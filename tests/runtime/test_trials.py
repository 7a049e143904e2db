"""The trial of this machine: measured once, kept under all that it depends on, never trusted blindly."""

import json
import math
import re
import runpy
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest

import runtime
from runtime.artefact.tensors import TensorSpec
from runtime.backend import open_backend
from runtime.errors import BackendUnavailable
from runtime.trials import Candidate, cache_path, cached_times, run_trial
from tests.conftest import ROOT

FAST, SLOW = Candidate("openvino", "fp32"), Candidate("onnxruntime", "fp32")


class FakeBackend(nullcontext):
    """A backend whose frames take little time."""

    input = TensorSpec(name="frames", dtype=np.dtype(np.uint8), shape=(None, 8, 8, 3))

    def __enter__(self):
        return self

    def infer(self, batch):
        assert batch.shape == (1, 8, 8, 3)
        sum(range(9999))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("runtime.trials._LEAST_SECONDS", 0.0)
    return cache_path()


def run(open_probe=lambda path, candidate: FakeBackend(), probe="fp32"):
    return run_trial(probe, (FAST, SLOW), open_probe)


def forbidden(path, candidate):
    raise AssertionError("opened again")


@pytest.mark.parametrize("probe", ["fp32", "int8"])
def test_the_probe_runs_on_the_real_backends(probe):
    candidates = [Candidate(name, probe) for name in ("openvino", "onnxruntime")]
    trial = run_trial(
        probe,
        candidates,
        lambda path, candidate: open_backend(
            path, candidate.backend, precision=candidate.precision, threads=1
        ),
    )
    assert list(trial.times_ms) == candidates
    assert all(0 < time_ms < 1000 for time_ms in trial.times_ms.values())
    assert trial.notes == ()


def test_the_probes_are_what_the_exporter_makes_today(tmp_path):
    """If this fails: run scripts/probes.py."""
    runpy.run_path(str(ROOT / "scripts" / "probes.py"))["write_probes"](tmp_path)
    for written in tmp_path.iterdir():
        shipped = onnx.load(Path(runtime.__file__).with_name(written.name))
        nodes = [(node.op_type, node.name) for node in onnx.load(written).graph.node]
        assert [(node.op_type, node.name) for node in shipped.graph.node] == nodes


def test_a_machine_is_measured_once():
    first = run()
    assert run(forbidden) == first
    assert set(cached_times("fp32")) == {FAST, SLOW}
    assert cached_times("int8") == {}


def test_the_other_probe_keeps_the_first():
    run()
    run(probe="int8")
    assert cached_times("fp32") == run(forbidden).times_ms


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m: m.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"), id="limit"),
        pytest.param(lambda m: m.setattr("runtime.trials.cpu_name", lambda: "8086"), id="cpu"),
        pytest.param(lambda m: m.setattr("runtime.trials.cpu_flags", frozenset), id="flags"),
        pytest.param(lambda m: m.setattr("runtime.trials.nvidia_gpus", lambda: ("A",)), id="gpu"),
        pytest.param(
            lambda m: m.setattr(metadata, "version", lambda name: "0.1"), id="library-version"
        ),
        pytest.param(
            lambda m: m.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}), id="cores"
        ),
    ],
)
def test_what_the_times_depend_on_is_measured_again(monkeypatch, change):
    run()
    change(monkeypatch)
    assert cached_times("fp32") == {}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: text[:-5], id="cut"),
        pytest.param(lambda text: "[1]", id="a-list"),
        pytest.param(lambda text: json.dumps(dict.fromkeys(json.loads(text), 3)), id="number"),
        pytest.param(lambda text: text.replace("fp32", "fp32 fp32"), id="names"),
        pytest.param(lambda text: re.sub(r": (\d)", r": -\1", text), id="negative"),
        pytest.param(lambda text: re.sub(r": \d[\d.]*", ": NaN", text), id="nan"),
    ],
)
def test_a_damaged_cache_is_ignored_and_rewritten(cache, damage):
    run()
    cache.write_text(damage(cache.read_text()))
    assert cached_times("fp32") == {}
    again = run()
    assert all(map(math.isfinite, again.times_ms.values()))
    assert cached_times("fp32") == again.times_ms


def test_bytes_that_are_no_text_are_a_damaged_cache(cache):
    cache.parent.mkdir()
    cache.write_bytes(b"\xff\xfe")
    assert run().notes == ()
    assert cached_times("fp32")


def test_a_candidate_that_fails_is_noted_and_tried_again_next_time(cache):
    def open_probe(path, candidate):
        if candidate == SLOW:
            raise BackendUnavailable("libgomp.so.1 is missing")
        return FakeBackend()

    trial = run(open_probe)
    assert list(trial.times_ms) == [FAST]
    assert trial.notes == ("onnxruntime fp32 does not run here: libgomp.so.1 is missing",)
    assert not cache.exists()


def test_without_a_cache_the_trial_works_and_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    trial = run()
    assert set(trial.times_ms) == {FAST, SLOW}
    (note,) = trial.notes
    assert note.startswith("cannot write the cache ")


def test_the_cache_does_not_grow_without_end(cache, monkeypatch):
    monkeypatch.setattr("runtime.trials._MAX_MACHINES", 2)
    for name in ("first", "second", "third"):
        monkeypatch.setattr("runtime.trials.cpu_name", lambda name=name: name)
        run()
    assert len(json.loads(cache.read_text())) == 2
    assert cached_times("fp32")
