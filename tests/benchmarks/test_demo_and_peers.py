from __future__ import annotations

import numpy as np
import pytest

from benchmarks import demo
from benchmarks.frames import load_frames
from benchmarks.peers import compare_routes, plain_onnx_route, torch_route
from esnet.checkpoint import load_checkpoint

SIZE = (64, 128)


@pytest.fixture(scope="module")
def camvid():
    return load_checkpoint("camvid")


def test_the_plain_export_labels_as_torch_does(camvid, tmp_path):
    frame = load_frames(None, SIZE).frames[0]
    plain, torch = plain_onnx_route(camvid, SIZE, tmp_path), torch_route(camvid)
    assert (plain(frame) == torch(frame)).mean() > 0.999


def test_routes_are_compared_with_the_first(camvid, quick):
    frames = load_frames(None, SIZE)
    eager = torch_route(camvid)
    results = compare_routes(
        {"torch": eager, "other": lambda f: eager(f) + np.uint8(1)}, frames, quick
    )
    assert results[0].speed == 1.0
    assert [result.agreement for result in results] == [1.0, 0.0]


def test_demo_uses_the_frames_it_is_given(tmp_path, capsys):
    assert demo._choose_frames(tmp_path) == tmp_path
    assert "as given" in capsys.readouterr().out


def test_demo_generates_scenes_where_there_is_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = demo._choose_frames(None)
    assert len(list(folder.glob("*.png"))) == 16
    assert "generated" in capsys.readouterr().out
