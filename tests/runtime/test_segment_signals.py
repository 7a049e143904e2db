"""``esnet-segment`` that is ended before its source is: what was segmented stays, and plays."""

import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from runtime.media.sources import open_source
from tests.conftest import command_line, obey_ctrl_c

CAMERA = """
import http.server, itertools, sys, time
jpeg = open(sys.argv[1], "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        while True:
            self.wfile.write(b"--frame\\r\\nContent-Type: image/jpeg\\r\\n\\r\\n" + jpeg + b"\\r\\n")
            time.sleep(0.02)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def endless(tmp_path):
    """A video that takes longer than the test."""
    path = tmp_path / "in.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (128, 64))
    for index in range(3000):
        writer.write(np.full((64, 128, 3), index % 200, np.uint8))
    writer.release()
    return path


@pytest.fixture
def camera(draw_image):
    """An MJPEG camera, in a process of its own."""
    words = [sys.executable, "-c", CAMERA, str(draw_image("frame.jpg"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/"
        process.kill()


def run_until_frame(number, make_artefact, tmp_path, source, output, *signals):
    """Run the command, send signals after a frame, and get its exit code and output."""
    words = [
        source,
        "-m",
        make_artefact(),
        "-o",
        output,
        "--jsonl",
        "-",
        "--backend",
        "onnxruntime",
    ]
    with subprocess.Popen(
        command_line("esnet-segment", *words),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey_ctrl_c,
    ) as process:
        records = []
        for line in process.stdout:
            records.append(line)
            if len(records) == number:
                for one in signals:
                    process.send_signal(one)
        return process.wait(), len(records), process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_video_that_is_cut_short_plays_and_ends_with_1(endless, make_artefact, tmp_path, number):
    code, count, text = run_until_frame(20, make_artefact, tmp_path, endless, "out.mp4", number)
    assert code == 1
    assert "interrupted: the source has more frames" in text
    assert f"frames: {count} in, {count} out, 0 dropped, 0 skipped" in text
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]
    assert 20 <= open_source(tmp_path / "out.mp4").num_frames == count < 1000


def test_a_camera_that_is_ended_is_0(camera, make_artefact, tmp_path):
    code, count, text = run_until_frame(5, make_artefact, tmp_path, camera, "out", signal.SIGTERM)
    assert code == 0, text
    assert "wrote out" in text
    assert len(os.listdir(tmp_path / "out")) == count


def test_a_second_signal_ends_at_once_and_leaves_what_plays(endless, make_artefact, tmp_path):
    both = (signal.SIGINT, signal.SIGTERM)
    code, _, text = run_until_frame(60, make_artefact, tmp_path, endless, "out.mp4", *both)
    assert code in (128 + signal.SIGTERM, 1)  # the first one may have been enough
    assert "Traceback" not in text
    name = "out.mp4" if code == 1 else "out.partial.mp4"
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", name]
    assert len(list(open_source(tmp_path / name))) >= 20
