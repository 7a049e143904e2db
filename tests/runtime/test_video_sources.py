"""Video files through both decoders: order, times, rotation, names, damage."""

import itertools
import os
import struct
from fractions import Fraction

import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.sources import open_source

av = pytest.importorskip("av")


@pytest.fixture(params=["pyav", "opencv"])
def decoder(request, hide_library):
    if request.param == "opencv":
        hide_library("av")
    return request.param


@pytest.fixture
def write_video(tmp_path):
    """Write greys that get 20 brighter each time, at these ticks of 1/1000 s."""

    def write(name, ticks, size_hw=(64, 128)):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.height, stream.width = size_hw
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            for index, tick in enumerate(ticks):
                image = np.full((*size_hw, 3), 20 * index, np.uint8)
                image[: size_hw[0] // 4] = 255  # tells top from bottom
                frame = av.VideoFrame.from_ndarray(image)
                frame.pts = tick
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


def test_a_video_is_read_in_order(decoder, draw_video):
    source = open_source(draw_video("drive.mp4", num_frames=6))
    assert (source.num_frames, source.fps) == (6, 10.0)
    frames = list(source)
    assert [frame.name for frame in frames] == [f"drive_{i:06d}" for i in range(6)]
    assert np.all(np.diff([frame.image.mean() for frame in frames]) > 10)
    assert [frame.name for frame in source] == [frame.name for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_timestamps_are_those_of_the_video(decoder, write_video, suffix):
    ticks = [500, 600, 900, 1000, 2500]  # relative to the first one
    frames = list(open_source(write_video(f"v{suffix}", ticks)))
    expected = [(tick - 500) / 1000 for tick in ticks]
    times = [frame.timestamp for frame in frames]
    np.testing.assert_allclose(np.diff(times), np.diff(expected), atol=0.002)
    if decoder == "pyav":
        np.testing.assert_allclose(times, expected, atol=0.002)


def test_both_decoders_give_the_same_pixels(video_path, hide_library):
    by_pyav = [frame.image for frame in itertools.islice(open_source(video_path), 5)]
    hide_library("av")
    for ours, frame in zip(by_pyav, open_source(video_path), strict=False):
        np.testing.assert_array_equal(ours, frame.image)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_the_rotation_of_a_phone_is_applied(decoder, write_video, degrees):
    path = write_video("v.mp4", [0, 100])
    data = bytearray(path.read_bytes())
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = matrix
    path.write_bytes(data)
    image = next(iter(open_source(path))).image
    upright = np.rot90(image, degrees // 90)  # counter-clockwise: undoes the clockwise rotation
    assert upright.shape == (64, 128, 3)
    assert upright[:12].mean() > 200
    assert upright[20:].mean() < 60


@pytest.mark.parametrize("name", [b"r\xe9.mp4", "r\u00e9.mp4".encode(), b"10:30.mp4"])
def test_a_file_name_may_have_any_encoding_and_a_colon(
    decoder, draw_video, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    draw_video("v.mp4", num_frames=3).rename(os.fsdecode(name))
    assert len(list(open_source(os.fsdecode(name)))) == 3


def test_damage_is_skipped_and_listed(draw_video):
    path = draw_video("drive.mp4", num_frames=6)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    path.write_bytes(data)
    source = open_source(path)
    assert list(source) == []
    assert source.skipped[0] == "after 0.00 s: Invalid data found when processing input"


def test_a_file_without_video_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InvalidInput, match="cannot be decoded as a video: it holds no video"):
        open_source(tmp_path / "sound.mp4")


def test_stop_ends_the_iteration(decoder, draw_video):
    source = open_source(draw_video("drive.mp4"))
    frames = iter(source)
    next(frames)
    source.stop()
    assert list(frames) == []


def test_a_real_road_video_is_read(decoder, video_path):
    source = open_source(video_path)
    frames = [frame for frame, _ in zip(source, range(3), strict=False)]
    assert source.num_frames > 100
    assert source.fps == 25.0
    assert [frame.image.shape for frame in frames] == [(540, 960, 3)] * 3
    assert all(frame.image.std() > 20 for frame in frames)


def test_no_descriptor_or_thread_is_left(decoder, draw_video):
    path = draw_video("drive.mp4")
    next(iter(open_source(path)))
    before = set(os.listdir("/proc/self/fd"))
    next(iter(open_source(path)))
    assert set(os.listdir("/proc/self/fd")) == before
