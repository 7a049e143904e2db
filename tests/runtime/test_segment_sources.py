"""``esnet-segment`` on sources other than a plain file."""

import http.server
import subprocess
import threading

import cv2
import numpy as np
import pytest

from runtime.media.sources import read_image
from tests.conftest import command_line


@pytest.fixture
def segment(tmp_path, make_artefact, invoke):
    """Run the command in the test's folder; the overlay leaves the frames as they are."""

    def run(source, output, *options):
        words = [source, "-m", make_artefact(), "-o", output, "--alpha", "0", "--no-legend"]
        return invoke("esnet-segment", *words, "--backend", "null", *options, cwd=tmp_path)

    return run


def test_sub_folders_are_kept_in_the_output(segment, draw_image, tmp_path):
    for name in ("in/a.png", "in/day/a.jpg", "in/day/night/b.png"):
        draw_image(name)
    done = segment("in", "out", "--recursive")
    assert done.returncode == 0, done.stderr
    written = {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")
    }
    assert written == {"a.png", "day/a.png", "day/night/b.png"}
    read = read_image(tmp_path / "out/day/night/b.png")
    np.testing.assert_array_equal(read, read_image(tmp_path / "in/day/night/b.png"))


@pytest.mark.parametrize(
    ("source", "output", "options"),
    [
        pytest.param("in", "in", ["--recursive"], id="folder"),
        pytest.param("in/*.png", "in", [], id="pattern"),
        pytest.param("in/list.txt", "in", [], id="list"),
        pytest.param("in/day/../list.txt", "in/day/..", [], id="list-by-another-path"),
    ],
)
def test_no_image_is_written_over_its_source(
    segment, draw_image, tmp_path, source, output, options
):
    before = draw_image("in/a.png").read_bytes()
    draw_image("in/day/b.png")
    (tmp_path / "in" / "list.txt").write_text("a.png\n")
    done = segment(source, output, *options)
    assert done.returncode == 2
    assert "is the source itself" in done.stderr
    assert (tmp_path / "in/a.png").read_bytes() == before


def test_raw_frames_come_through_a_pipe(make_artefact, frame, tmp_path):
    words = ["-", "--size", "64x128", "--pixel-format", "bgr24", "-m", make_artefact(), "-o", "out"]
    options = ["--alpha", "0", "--no-legend", "--backend", "null"]
    done = subprocess.run(
        command_line("esnet-segment", *words, *options),
        input=frame[..., ::-1].tobytes() * 3,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"3 frames in")
    np.testing.assert_array_equal(read_image(tmp_path / "out/stdin_000002.png"), frame)


def test_a_camera_that_goes_away_is_one_line_and_1(segment, frame, tmp_path):
    jpeg = cv2.imencode(".jpg", frame)[1].tobytes()
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            self.wfile.write((head + jpeg + b"\r\n") * 5)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://user:secret@127.0.0.1:{server.server_port}/cam"
        done = segment(url, "out", "--reconnect", "0s")
        server.shutdown()
    assert done.returncode == 1
    assert "frames: 5 in, " in done.stdout
    assert ", age " in done.stdout
    name = f"127.0.0.1:{server.server_port}/cam"
    assert done.stderr.startswith(f"error: http://{name} was lost, 0.0 s after its last frame: ")
    assert "secret" not in done.stderr
    assert (tmp_path / "out" / f"{name.replace(':', '_').replace('/', '_')}_000004.png").is_file()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("a.png", ["--recursive"], "recursive has no effect on the image 'a.png'"),
        ("0", ["--reconnect", "soon"], "'soon' is not a duration"),
        ("-", [], "raw frames on stdin need a size"),
        ("-", ["--size", "64"], "size '64' is not HEIGHTxWIDTH"),
        ("no/*.png", [], "pattern no/*.png holds no images"),
        ("gopher://host", [], "unknown protocol gopher://"),
    ],
)
def test_a_bad_source_is_one_line_and_2(segment, draw_image, source, options, message):
    draw_image("a.png")
    done = segment(source, "out", *options)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == f"error: {message}" or error.startswith(f"error: {message} ")
    assert hint.startswith("hint: ")
