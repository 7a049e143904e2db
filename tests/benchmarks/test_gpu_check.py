"""The GPU check itself, on a fake GPU: it must find what it is there to find."""

import argparse
import json
import sys

import numpy as np
import pytest

from benchmarks import gpu_check
from tests.fake_cuda import FakeDevice


@pytest.fixture
def small(monkeypatch):
    """Small frames, and a driver's copy that works on the fake GPU."""
    monkeypatch.setattr(gpu_check, "SIZE_HW", (8, 16))

    def use(device, *, spoils=False):
        def copy(target, source, num_bytes, stream):
            # The engine copies inside one buffer a slot: addresses lie inside the fake's allocations.
            to, at = base(device, target), base(device, source)

            def run():
                data = device.at(at)[source - at : source - at + num_bytes]
                device.at(to)[target - to : target - to + num_bytes] = data ^ np.uint8(spoils)

            device.launch(run, (at,), (to,), stream)

        monkeypatch.setattr(gpu_check, "device_copy", lambda: copy)

    return use


def base(device, address):
    return max(start for start in device.buffers if start <= address)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("use_graphs", [True, False])
def test_the_ring_is_stressed_and_every_frame_compared(small, batch, use_graphs):
    device = FakeDevice()
    small(device)
    result = gpu_check._stress(device, batch, use_graphs, 60)
    assert result["frames"] >= 60
    assert result["wrong"] == 0
    assert result["memory_drift_bytes"] == 0


def test_wrong_frames_are_found(small):
    device = FakeDevice()
    small(device, spoils=True)
    assert gpu_check._stress(device, 1, False, 20)["wrong"] > 0


def test_without_a_gpu_every_stage_says_why_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.cuda.device._has", lambda module: False)
    stages = {name: gpu_check.STAGES[name] for name in ("devices", "ring", "overhead")}
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), "--quick"])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 0
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {result["status"] for result in report["stages"].values()} == {"skipped"}
    assert "pycuda is not installed" in report["stages"]["devices"]["reason"]
    assert "## ring: skipped" in (tmp_path / "gpu_check.md").read_text()


def test_a_stage_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        gpu_check, "STAGES", {"one": lambda options: done.append(1) or {"value": 7}}
    )
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    for _ in range(2):
        with pytest.raises(SystemExit):
            gpu_check.main()
    assert done == [1]
    assert json.loads((tmp_path / "gpu_check.json").read_text())["stages"]["one"]["value"] == 7


def test_a_stage_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def fail(options: argparse.Namespace):
        raise RuntimeError("the ring is broken")

    monkeypatch.setattr(gpu_check, "STAGES", {"bad": fail, "good": lambda options: {}})
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 1
    stages = json.loads((tmp_path / "gpu_check.json").read_text())["stages"]
    assert stages["bad"]["reason"] == "RuntimeError: the ring is broken"
    assert stages["good"]["status"] == "ok"
