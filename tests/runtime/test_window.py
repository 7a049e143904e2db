"""The window of ``--show``, on a virtual display whose pixels are read."""

import shutil
import subprocess
import time

import numpy as np
import pytest

from tests.conftest import command_line


@pytest.fixture
def screen(tmp_path, monkeypatch):
    """A virtual display; call it for the pixels on it, RGB (H, W, 3)."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb (Debian: apt-get install xvfb)")
    words = ["Xvfb", "-displayfd", "1", "-screen", "0", "640x480x24", "-fbdir", str(tmp_path)]
    with subprocess.Popen(
        [*words, "-nolisten", "tcp"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        monkeypatch.setenv("DISPLAY", f":{process.stdout.readline().strip()}")
        monkeypatch.setenv("QT_QPA_PLATFORM", "xcb")

        def pixels():
            content = np.fromfile(tmp_path / "Xvfb_screen0", np.uint8)
            return content[-640 * 480 * 4 :].reshape(480, 640, 4)[..., 2::-1]

        yield pixels
        process.terminate()


def test_frames_are_shown_until_the_source_ends(screen, make_artefact, frame, card, tmp_path):
    words = ["-", "--size", "64x128", "-m", make_artefact(), "--backend", "null", "--show"]
    with subprocess.Popen(
        command_line("esnet-segment", *words, "--draw", "colors"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        for _ in range(10):
            process.stdin.write(frame.tobytes())
        process.stdin.flush()
        ends = time.monotonic() + 30
        while not (shown := (screen() == card.palette[0]).all(-1)).any():
            assert time.monotonic() < ends, "the frame does not appear"
            time.sleep(0.05)
        output, errors = process.communicate(timeout=30)
    assert shown.sum() > 1000
    assert process.returncode == 0, errors
    assert output.startswith(b"10 frames in")
    assert errors == b""


def test_without_a_display_there_is_one_line(invoke, draw_image, make_artefact, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    words = [draw_image("in.png"), "-m", make_artefact(), "--backend", "null", "--show"]
    done = invoke("esnet-segment", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no display to show a window on")
