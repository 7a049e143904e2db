"""Live sources on local servers: the newest frame wins, outages are bridged, and nothing is left behind."""

import contextlib
import http.server
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import cv2
import numpy as np
import pytest

from runtime.errors import InvalidInput, SourceLost
from runtime.media.sources import open_source
from tests.conftest import ROOT

RTSP_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
for name in ("videotestsrc", "x264enc", "rtph264pay"):
    assert Gst.ElementFactory.find(name), name
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_shared(True)
factory.set_launch(
    "( videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=30/1,format=I420 "
    "! x264enc tune=zerolatency key-int-max=5 ! rtph264pay name=pay0 )"
)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(threading.enumerate())
    yield
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("receive")}


@pytest.fixture(params=["pyav", "opencv"])
def decoder(request, hide_library):
    if request.param == "opencv":
        hide_library("av")
    else:
        pytest.importorskip("av")
    return request.param


class Camera(http.server.ThreadingHTTPServer):
    """An MJPEG server; ``script(n)`` gives images and pauses in seconds for the n-th connection."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, script, port=0):
        super().__init__(("127.0.0.1", port), CameraHandler)
        self.script, self.connections, self.released = script, itertools.count(), threading.Event()
        self.url = f"http://user:secret@127.0.0.1:{self.server_port}/cam.mjpg?token=secret"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.released.set()
        self.shutdown()
        self.server_close()


class CameraHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            for item in self.server.script(next(self.server.connections)):
                if isinstance(item, float):
                    if self.server.released.wait(item):
                        return
                    continue
                jpeg = item if isinstance(item, bytes) else cv2.imencode(".jpg", item)[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")


@pytest.fixture
def camera():
    """Start MJPEG servers."""
    servers = []

    def start(script, port=0):
        servers.append(Camera(script, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def grey(number, size_hw=(48, 64)):
    return np.full((*size_hw, 3), number, np.uint8)


def paced(*numbers, pause=0.03):
    """Greys with pauses; FFmpeg wants about two frames before it gives the first one."""
    return [item for number in numbers for item in (grey(number), pause)]


def number_in(frame):
    return round(float(frame.image.mean()))


def received_until_lost(source, work=0.0):
    """Get all frames; each takes the consumer ``work`` seconds."""
    frames = []
    with contextlib.suppress(SourceLost):
        for frame in source:
            frames.append(frame)
            time.sleep(work)
    return frames


def test_frames_are_rgb_and_numbered(decoder, camera):
    red = np.full((48, 64, 3), (0, 0, 255), np.uint8)
    server = camera(lambda _: (item for _ in range(5) for item in (red, 0.05)))
    frames = received_until_lost(open_source(server.url, reconnect=0))
    assert len(frames) >= 3
    assert frames[-1].name == f"127.0.0.1_{server.server_port}_cam.mjpg_{4:06d}"
    np.testing.assert_allclose(frames[0].image[24, 32], (255, 0, 0), atol=3)


def test_drops_are_counted_exactly_and_the_newest_frame_wins(decoder, camera):
    server = camera(lambda _: paced(*range(100), pause=0.003))
    source = open_source(server.url, reconnect=0)
    frames = received_until_lost(source, work=0.03)
    numbers = [number_in(frame) for frame in frames]
    assert numbers == [int(frame.name[-6:]) for frame in frames]
    assert numbers[-1] == 99
    assert len(frames) + source.drops == 100
    assert source.drops > 20


def test_a_damaged_frame_is_a_drop(camera):
    pytest.importorskip("av")
    broken = cv2.imencode(".jpg", grey(7))[1].tobytes()[:20]
    items = [*paced(0, 1, 2), broken, 0.1, *paced(4, 5)]
    source = open_source(camera(lambda _: items).url, reconnect=0)
    frames = received_until_lost(source)
    assert [int(frame.name[-6:]) for frame in frames][-3:] == [2, 4, 5]
    assert len(frames) + source.drops == 6


def test_a_slow_consumer_gets_no_old_frame(camera):
    sent = []

    def script(_):
        for number in range(60):
            sent.append(number)
            yield from paced(number, pause=1 / 60)

    source = open_source(camera(script).url, reconnect=0)
    frames, behind = [], []
    with contextlib.suppress(SourceLost):
        for frame in source:
            frames.append(frame)
            behind.append(sent[-1] - number_in(frame))
            assert source.age(frame.timestamp) < 1
            time.sleep(4 / 60)
    assert len(frames) >= 8
    assert np.median(behind) <= 1
    assert max(behind[1:]) <= 4  # a queue of two frames would be eight behind


def test_a_stall_becomes_a_gap_and_the_resolution_may_change(decoder, camera):
    def script(connection):
        size_hw = (48, 64) if connection == 0 else (96, 80)
        for _ in range(20):
            yield grey(1, size_hw)
            yield 0.02
        yield 60.0

    source = open_source(camera(script).url, timeout=0.3)
    frames = []
    for frame in source:
        frames.append(frame)
        if frame.image.shape == (96, 80, 3):
            break
    assert frames[0].image.shape == (48, 64, 3)
    (gap,) = source.gaps
    assert 0.3 < gap.seconds < 2
    assert gap.reason == ("no data for 0.3 s" if decoder == "pyav" else "the stream ended")
    assert [frame.timestamp for frame in frames] == sorted(frame.timestamp for frame in frames)


def test_a_server_that_returns_is_found_again(camera):
    first = camera(lambda _: paced(1, 1, 1))
    source = open_source(first.url, reconnect=20, timeout=0.5)
    frames = iter(source)
    assert number_in(next(frames)) == 1
    first.close()
    restart = threading.Timer(
        0.5, lambda: camera(lambda _: [*paced(2, 2, 2), 60.0], first.server_port)
    )
    restart.start()
    assert next(number for number in map(number_in, frames) if number != 1) == 2
    (gap,) = source.gaps
    assert gap.seconds > 0.4
    frames.close()
    restart.join()


def test_a_source_that_stays_away_is_an_error_after_its_frames(decoder, camera):
    server = camera(lambda connection: paced(1, 1, 1) if connection == 0 else [])
    source = open_source(server.url, reconnect=0.6, timeout=0.3)
    started = time.monotonic()
    frames = []
    with pytest.raises(
        SourceLost, match=r"cam\.mjpg was lost, 0\.\d s after its last frame: "
    ) as lost:
        frames.extend(source)
    assert 0.6 <= time.monotonic() - started < 3
    assert len(frames) + source.drops == 3
    assert "secret" not in str(lost.value)


def test_a_source_that_never_answered_is_an_error_at_once(decoder):
    source = open_source("rtsp://user:secret@127.0.0.1:1/live?token=secret")
    started = time.monotonic()
    with pytest.raises(
        InvalidInput, match=r"no frames from rtsp://127\.0\.0\.1:1/live: "
    ) as refused:
        list(source)
    assert time.monotonic() - started < 3
    assert "secret" not in str(refused.value)


def test_a_missing_camera_is_named():
    with pytest.raises(InvalidInput, match="no frames from 77: ") as refused:
        list(open_source("77"))
    assert refused.value.hint == "cameras are listed by: ls /dev/video*"


def test_stop_ends_a_stalled_source(decoder, camera):
    source = open_source(camera(lambda _: [*paced(1, 1, 1), 60.0]).url, timeout=0.5)
    frames = iter(source)
    next(frames)
    threading.Timer(0.2, source.stop).start()
    started = time.monotonic()
    assert len(list(frames)) < 3
    assert time.monotonic() - started < 2


def test_no_descriptor_is_left(decoder, camera):
    def count_after_use():
        server = camera(lambda _: [*paced(1, 1, 1), 60.0])
        next(iter(open_source(server.url, timeout=0.2)))
        server.close()
        server.released.wait()
        time.sleep(0.05)  # the server's own sockets
        return len(os.listdir("/proc/self/fd"))

    assert len({count_after_use() for _ in range(3)}) == 1


def test_a_program_may_end_without_closing_the_iteration(camera):
    server = camera(lambda _: paced(*[1] * 2000))
    code = (
        "import sys; from runtime.media.sources import open_source; "
        "frames = iter(open_source(sys.argv[1], timeout=0.5)); print(next(frames).image.shape)"
    )
    words = [sys.executable, "-c", code, server.url]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "(48, 64, 3)\n"


@pytest.fixture
def web(tmp_path):
    """Serve the test's folder; gives its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def write_greys(tmp_path):
    """Write greys at 20 frames a second with FFmpeg's muxer of this name."""
    av = pytest.importorskip("av")

    def write(name, count, muxer, **options):
        with av.open(str(tmp_path / name), "w", format=muxer, options=options) as container:
            stream = container.add_stream("mpeg2video", rate=20)
            stream.height, stream.width, stream.gop_size = 48, 64, 20
            stream.codec_context.time_base = Fraction(1, 20)
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(grey(2 * number))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    return write


def test_a_file_on_a_server_drops_no_frame_and_ends(decoder, web, write_greys):
    write_greys("v.mkv", 30, "matroska")
    source = open_source(f"{web}/v.mkv")
    count = 0
    for _ in source:
        count += 1
        time.sleep(0.005)
    assert (count, source.drops, source.gaps) == (30, 0, [])


def test_a_file_without_a_known_length_is_one_by_its_size(web, write_greys):
    write_greys("v.ts", 30, "mpegts")
    assert len(list(open_source(f"{web}/v.ts"))) == 30


def test_a_live_playlist_is_shown_at_its_own_pace(decoder, web, write_greys, tmp_path):
    write_greys("live.m3u8", 60, "hls", hls_time="1", hls_list_size="0")
    playlist = tmp_path / "live.m3u8"
    playlist.write_text(playlist.read_text().replace("#EXT-X-ENDLIST", ""))
    source = open_source(f"{web}/live.m3u8", reconnect=0, timeout=1)
    started = time.monotonic()
    with contextlib.suppress(SourceLost):
        for _ in itertools.islice(source, 25):
            pass
    assert time.monotonic() - started > 0.9
    assert source.drops < 5


def test_a_finished_playlist_drops_no_frame_and_ends(decoder, web, write_greys):
    write_greys("done.m3u8", 60, "hls", hls_time="1", hls_list_size="0")
    source = open_source(f"{web}/done.m3u8")
    assert len(list(source)) == 60
    assert source.drops == 0


def test_a_missing_page_is_an_error_with_the_servers_answer(web):
    pytest.importorskip("av")
    with pytest.raises(InvalidInput, match="Server returned 404 Not Found"):
        list(open_source(f"{web}/none.mjpg"))


@pytest.fixture
def rtsp_server():
    """Start RTSP servers, if the system's Python has GStreamer's."""
    python = "/usr/bin/python3"
    if not shutil.which(python):
        pytest.skip(f"no {python}, which would run the RTSP server")
    processes = []

    def start(port="0"):
        words = [python, "-c", RTSP_SERVER, port]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PATH": ""}
        )
        processes.append(process)
        bound = process.stdout.readline().strip()
        if not bound:
            reason = process.stderr.read().strip().splitlines()[-1]
            pytest.skip(f"needs gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-ugly: {reason}")
        return process, bound

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_an_rtsp_camera_that_dies_and_returns(decoder, rtsp_server):
    process, port = rtsp_server()
    source = open_source(f"rtsp://127.0.0.1:{port}/live", timeout=2)
    frames = iter(source)
    assert next(frames).image.shape == (120, 160, 3)
    assert next(frames).image.std() > 20
    process.send_signal(signal.SIGKILL)
    process.wait()
    rtsp_server(port)
    ends = time.monotonic() + 15
    while not source.gaps and time.monotonic() < ends:
        next(frames)
    assert len(source.gaps) == 1
    frames.close()
