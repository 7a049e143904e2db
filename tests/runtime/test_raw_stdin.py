"""Raw frames on stdin: every pixel format, no drops, and an end that does not hang."""

import os
import sys
import threading
import time

import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.raw import PIXEL_FORMATS
from runtime.media.sources import open_source


@pytest.fixture
def pipe(monkeypatch):
    """Replace stdin by a pipe; gives the end to write to."""
    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "wb", buffering=0) as stream:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield stream


def noise(size_hw=(48, 64)):
    """Coarse noise, which survives the halved colours of YUV."""
    blocks = np.random.default_rng(0).integers(40, 216, (size_hw[0] // 8, size_hw[1] // 8, 3))
    return blocks.repeat(8, 0).repeat(8, 1).astype(np.uint8)


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_a_frame_of_ffmpeg_comes_back(pipe, pixel_format):
    av = pytest.importorskip("av")
    image = noise()
    if pixel_format == "gray":
        image[:] = image[..., :1]
    raw = av.VideoFrame.from_ndarray(image).reformat(format=pixel_format).to_ndarray()
    pipe.write(raw.tobytes())
    pipe.close()
    (frame,) = open_source("-", size_hw=(48, 64), pixel_format=pixel_format)
    inner = np.s_[2::8, 2::8]  # away from the edges of the blocks
    np.testing.assert_allclose(frame.image[inner].astype(int), image[inner].astype(int), atol=6)


def test_no_frame_is_dropped_and_they_are_numbered(pipe):
    frames = [np.full((2, 3, 3), index, np.uint8) for index in range(200)]
    writer = threading.Thread(
        target=lambda: [pipe.write(f.tobytes()) for f in frames] + [pipe.close()]
    )
    writer.start()
    read = list(open_source("-", size_hw=(2, 3)))
    writer.join()
    assert [frame.name for frame in read] == [f"stdin_{index:06d}" for index in range(200)]
    assert all((frame.image == index).all() for index, frame in enumerate(read))
    assert read[0].timestamp <= read[-1].timestamp < 10


def test_a_frame_cut_short_is_skipped(pipe):
    pipe.write(bytes(30))
    pipe.close()
    source = open_source("-", size_hw=(2, 3))
    assert len(list(source)) == 1
    assert source.skipped == ["stdin ended within frame 1, after 12 of 18 bytes"]


def test_stop_ends_a_pipe_that_stalls(pipe):
    pipe.write(bytes(20))
    source = open_source("-", size_hw=(2, 3))
    threading.Timer(0.1, source.stop).start()
    started = time.monotonic()
    assert len(list(source)) == 1
    assert time.monotonic() - started < 1
    assert source.skipped == []


@pytest.mark.parametrize(
    ("size_hw", "pixel_format", "message"),
    [
        ((2, 3), "nv21", "unknown pixel format 'nv21'"),
        ((3, 4), "nv12", "nv12 frames cannot have height 3 and width 4"),
        ((3, 3), "yuyv422", "yuyv422 frames cannot have height 3 and width 3"),
        ((0, 3), "rgb24", "rgb24 frames cannot have height 0"),
    ],
)
def test_what_cannot_be_is_refused(pipe, size_hw, pixel_format, message):
    with pytest.raises(InvalidInput, match=message):
        open_source("-", size_hw=size_hw, pixel_format=pixel_format)


def test_a_terminal_is_refused(monkeypatch):
    primary, secondary = os.openpty()
    with open(secondary) as terminal, open(primary):
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(InvalidInput, match="stdin is a terminal"):
            open_source("-", size_hw=(2, 3))
