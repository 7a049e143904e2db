"""MP4 files: complete under their own name, or playable under another; H.264 by PyAV, or OpenCV's codec."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.sources import open_source
from runtime.output.sinks import open_sink


@pytest.fixture(params=["h264", "mp4v"])
def codec(request, hide_library):
    """Write with PyAV, and without it."""
    if request.param == "mp4v":
        hide_library("av")
    else:
        pytest.importorskip("av")
    return request.param


@pytest.fixture
def video(draw_video):
    return open_source(draw_video("v.mp4"))


@pytest.fixture
def photos(draw_image, tmp_path):
    for name in ("a.png", "b.png"):
        draw_image(f"in/{name}")
    return open_source(tmp_path / "in")


@pytest.fixture
def out(tmp_path):
    """An empty folder to write to."""
    path = tmp_path / "out"
    path.mkdir()
    return path


def grey(value, size_hw=(64, 128)):
    return np.full((*size_hw, 3), value, np.uint8)


def frame_times(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def test_a_video_has_the_frames_and_rate_of_its_source(codec, out, video):
    with open_sink(out / "x.mp4", video) as write:
        for frame in video:
            write(frame.image, frame.name, frame.timestamp)
    written = open_source(out / "x.mp4")
    assert (written.num_frames, written.fps) == (5, 10.0)
    for before, after in zip(video, written, strict=True):
        np.testing.assert_allclose(after.image, before.image, atol=6)


def test_colours_survive(codec, out, video):
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (255, 255, 255)]
    with open_sink(out / "x.mp4", video) as write:
        for index, colour in enumerate(colours):
            write(np.full((64, 128, 3), colour, np.uint8), "a", index / 10)
    for frame, colour in zip(open_source(out / "x.mp4"), colours, strict=True):
        np.testing.assert_allclose(frame.image[32, 64], colour, atol=8)


def test_images_become_a_video_of_30_frames_a_second(codec, out, photos):
    with open_sink(out / "x.mp4", photos) as write:
        for _ in range(3):
            write(grey(9), "a", 0.0)
    assert open_source(out / "x.mp4").fps == 30.0


def test_a_map_becomes_grey(codec, out, video):
    with open_sink(out / "x.mp4", video) as write:
        write(np.full((64, 128), 77, np.uint8), "a", 0.0)
    (frame,) = open_source(out / "x.mp4")
    np.testing.assert_allclose(frame.image, 77, atol=4)


def test_an_odd_row_and_column_is_lost(codec, out, video):
    with open_sink(out / "x.mp4", video) as write:
        write(grey(9, (65, 127)), "a", 0.0)
    (frame,) = open_source(out / "x.mp4")
    assert frame.image.shape == (64, 126, 3)


def test_a_video_does_not_exist_before_its_end(codec, out, video):
    with open_sink(out / "x.mp4", video) as write:
        write(grey(9), "a", 0.0)
        assert not (out / "x.mp4").exists()
    assert os.listdir(out) == ["x.mp4"]


def test_no_frame_makes_no_file(codec, out, video):
    with open_sink(out / "x.mp4", video):
        pass
    assert os.listdir(out) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_the_frames_before_it_play_under_another_name(codec, out, video, error):
    def interrupted():
        with open_sink(out / "x.mp4", video) as write:
            for index in range(3):
                write(grey(50 * index), "a", index / 10)
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(out) == ["x.partial.mp4"]
    assert len(list(open_source(out / "x.partial.mp4"))) == 3
    with open_sink(out / "x.mp4", video) as write:
        write(grey(9), "a", 0.0)
    assert os.listdir(out) == ["x.mp4"]


def test_a_video_of_ours_is_replaced(codec, out, video):
    for count in (3, 2):
        with open_sink(out / "x.mp4", video) as write:
            for index in range(count):
                write(grey(9), "a", index / 10)
    assert open_source(out / "x.mp4").num_frames == 2


def test_a_video_keeps_the_size_of_its_first_frame(codec, out, video):
    with open_sink(out / "x.mp4", video) as write:
        write(grey(9), "a", 0.0)
        with pytest.raises(
            InvalidInput, match=r"b is \(32, 128\), the video's first was \(64, 128\)"
        ):
            write(grey(9, (32, 128)), "b", 0.1)


def test_a_camera_may_change_its_size(codec, out, video):
    with open_sink(out / "x.mp4", replace(video, is_live=True)) as write:
        write(grey(200), "a", 0.0)
        write(grey(100, (32, 32)), "b", 0.1)
    first, second = open_source(out / "x.mp4")
    assert second.image.shape == first.image.shape == (64, 128, 3)
    np.testing.assert_allclose(second.image, 100, atol=6)


def test_frames_that_are_missing_in_the_file_are_an_error(codec, out, video, monkeypatch):
    (out / "x.mp4").write_bytes(b"\0\0\0\x15freeesnet-segment")
    monkeypatch.setattr("runtime.output.video._count_frames", lambda path: 0)
    with (
        pytest.raises(OSError, match=r"only 0 of 1 frames have reached the file") as caught,
        open_sink(out / "x.mp4", video) as write,
    ):
        write(grey(9), "a", 0.0)
    assert caught.value.filename == str(out / "x.mp4")
    assert (out / "x.mp4").stat().st_size == 21


def test_a_size_that_the_codec_refuses_is_an_error(codec, out, video):
    with (
        pytest.raises(InvalidInput, match=r"cannot"),
        open_sink(out / "x.mp4", video) as write,
    ):
        write(grey(9, (1, 1)), "a", 0.0)
    assert os.listdir(out) == []


def test_a_camera_keeps_its_times(out, video):
    pytest.importorskip("av")
    times = [3.0, 3.1, 3.5, 3.5, 7.25]
    with open_sink(out / "x.mp4", replace(video, is_live=True, fps=None)) as write:
        for value, seconds in enumerate(times):
            write(grey(value), "a", seconds)
    np.testing.assert_allclose(frame_times(out / "x.mp4"), [0, 0.1, 0.5, 0.5333, 4.25], atol=1e-3)


def test_a_video_without_times_gets_a_constant_rate(codec, out, video):
    with open_sink(out / "x.mp4", video) as write:
        for value in range(4):
            write(grey(value), "a", 0.0)
    assert open_source(out / "x.mp4").fps == 10.0


def test_a_very_low_rate_is_possible(out, video):
    pytest.importorskip("av")
    with open_sink(out / "x.mp4", replace(video, fps=0.0003)) as write:
        write(grey(1), "a", 0.0)
    assert len(list(open_source(out / "x.mp4"))) == 1


def test_a_name_of_any_encoding(out, video):
    pytest.importorskip("av")
    path = out / os.fsdecode(b"10:30 \xff\xe9.mp4")
    with open_sink(path, video) as write:
        write(grey(9), "a", 0.0)
    assert len(list(open_source(path))) == 1


def test_h264_of_browsers_is_what_is_written(out, video):
    av = pytest.importorskip("av")
    with open_sink(out / "x.mp4", video) as write:
        write(grey(9), "a", 0.0)
    with av.open(str(out / "x.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.video[0].time_base == Fraction(1, 90_000)


WRITES = """
import sys
if sys.argv[3] == "mp4v":
    sys.modules["av"] = None
from pathlib import Path
import numpy as np
from runtime.media.sources import open_source
from runtime.output.sinks import open_sink
path = Path(sys.argv[1])
noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
with open_sink(path / "out.mp4", open_source(path / "v.mp4")) as write:
    for index in range(int(sys.argv[2])):
        write(np.roll(noise, index, 1), "a", index / 10)
        print(index, flush=True)
"""


def writer(path, count, codec="h264", **settings):
    words = [sys.executable, "-c", WRITES, str(path), str(count), codec]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


def test_after_kill_9_all_but_the_last_seconds_play(tmp_path, video):
    pytest.importorskip("av")
    with writer(tmp_path, 10**6) as process:
        for line in process.stdout:
            if int(line) == 100:
                process.send_signal(signal.SIGKILL)
                break
    assert sorted(os.listdir(tmp_path)) == ["out.partial.mp4", "v.mp4"]
    assert len(list(open_source(tmp_path / "out.partial.mp4"))) >= 50


def test_a_full_disk_is_an_error_and_leaves_the_older_video(codec, tmp_path, video):
    resource = pytest.importorskip("resource")
    with open_sink(tmp_path / "out.mp4", video) as write:
        write(grey(9), "a", 0.0)
    before = (tmp_path / "out.mp4").read_bytes()
    limit = 200_000
    process = writer(
        tmp_path,
        200,
        codec,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(b"OSError: [Errno 27] File too large")
    assert (tmp_path / "out.mp4").read_bytes() == before
    if codec == "h264":
        assert len(list(open_source(tmp_path / "out.partial.mp4"))) > 5


def test_a_file_without_a_stream_has_no_frames(tmp_path):
    h264 = pytest.importorskip("runtime.output.h264")
    header = b"\0\0\0\x1cftypisom\0\0\x02\0isomiso2mp41\0\0\0\x08free"
    (tmp_path / "a.mp4").write_bytes(header + b"\0\0\0\x6cmoov\0\0\0\x64mvhd" + bytes(92))
    assert h264.count_frames(tmp_path / "a.mp4") == 0


@pytest.mark.parametrize("max_bytes", [0, 200, 20_000])
def test_a_full_disk_is_an_error_and_no_crash(tmp_path, max_bytes):
    pytest.importorskip("av")
    code = (
        "import resource, sys; import numpy as np; from pathlib import Path\n"
        "from runtime.output.h264 import H264Encoder\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({max_bytes}, {max_bytes}))\n"
        "encoder = H264Encoder(Path(sys.argv[1]), (64, 128), 25.0)\n"
        "noise = np.random.default_rng(0)\n"
        "def write():\n"
        "    for index in range(60):\n"
        "        encoder.write(noise.integers(0, 256, (64, 128, 3), np.uint8), index / 25)\n"
        "    encoder.close()\n"
        "for step in (write, encoder.close):\n"
        "    try: step()\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.mp4")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("File too large\n")
