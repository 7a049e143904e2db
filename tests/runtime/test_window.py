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


@pytest.fixture
def shown(screen, make_artefact, frame, card):
    """Start the command on 10 raw frames, with stdin open; get the process once its window has its colour.

    Without a window manager, Qt misses the first expose event in 2 % of the starts: hence the attempts.
    """
    words = ["-", "--size", "64x128", "-m", make_artefact(), "--backend", "null", "--show"]
    for _ in range(4):
        process = subprocess.Popen(
            command_line("esnet-segment", *words, "--draw", "colors"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdin.write(frame.tobytes() * 10)
        process.stdin.flush()
        ends = time.monotonic() + 10
        while time.monotonic() < ends:
            if (screen() == card.palette[0]).all(-1).sum() > 1000:
                yield process
                process.kill()
                process.wait()
                return
            time.sleep(0.05)
        process.kill()
        process.communicate()
    pytest.fail("the frame does not appear")


def test_frames_are_shown_until_the_source_ends(shown):
    output, errors = shown.communicate(timeout=30)
    assert shown.returncode == 0, errors
    assert output.startswith(b"10 frames in")
    assert errors == b""


def test_the_window_ends_a_source_that_stalls(shown):
    if shutil.which("xdotool") is None:
        pytest.skip("no xdotool (Debian: apt-get install xdotool)")
    ends = time.monotonic() + 20
    while shown.poll() is None:
        assert time.monotonic() < ends, "the window does not obey"
        subprocess.run(["xdotool", "mousemove", "20", "20", "key", "q"], check=True)
        time.sleep(0.2)
    assert shown.returncode == 1
    assert b"interrupted: the source has more frames" in shown.stdout.read()


def test_without_a_display_there_is_one_line(invoke, draw_image, make_artefact, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    words = [draw_image("in.png"), "-m", make_artefact(), "--backend", "null", "--show"]
    done = invoke("esnet-segment", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no display to show a window on")
