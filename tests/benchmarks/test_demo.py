"""The demo's choice of frames."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def choose_frames():
    demo = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "demo.py"))
    return demo["_choose_frames"]


def test_demo_uses_the_frames_it_is_given(choose_frames, tmp_path, capsys):
    assert choose_frames(tmp_path) == tmp_path
    assert "as given" in capsys.readouterr().out


def test_demo_generates_scenes_where_there_is_no_data(choose_frames, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = choose_frames(None)
    assert len(list(folder.glob("*.png"))) == 16
    assert "generated" in capsys.readouterr().out
