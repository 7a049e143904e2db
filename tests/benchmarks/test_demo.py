"""The demo's choice of frames."""

from __future__ import annotations

from scripts import demo


def test_demo_uses_the_frames_it_is_given(tmp_path, capsys):
    assert demo._choose_frames(tmp_path) == tmp_path
    assert "as given" in capsys.readouterr().out


def test_demo_generates_scenes_where_there_is_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = demo._choose_frames(None)
    assert len(list(folder.glob("*.png"))) == 16
    assert "generated" in capsys.readouterr().out
