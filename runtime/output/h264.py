"""H.264 in MP4 by PyAV: plays in browsers, and after a crash up to its last second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import cv2
import numpy as np
from av.video.stream import VideoStream

from runtime.errors import InvalidInput
from runtime.output.marks import MARK

ENCODER = "libx264"
_TICKS = 90_000  # a second
# Fragments of a second while the file grows; a file that was closed is an ordinary MP4.
_FILE_OPTIONS = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}
# OpenCV converts to BT.601, limited range. No B frames: three quarters of the CPU time, 14 % larger.
_CODEC_OPTIONS = {
    "preset": "veryfast",
    "crf": "23",
    "bf": "0",
    "x264-params": "colormatrix=smpte170m:colorprim=bt709:transfer=bt709:range=tv",
}


class H264Encoder:
    """Writes RGB frames with their times; errors are ``OSError``."""

    def __init__(self, path: Path, size_hw: tuple[int, int], fps: float) -> None:
        """Create the file.

        Args:
            path: File to write.
            size_hw: Even height and width.
            fps: Expected frames per second.

        Raises:
            InvalidInput: The encoder refuses this size or rate.
            OSError: The file cannot be created.
        """
        self._path, self._last, self._has_failed = path, -1, False
        with self._reporting():
            self._container = av.open(str(path.absolute()), "w", "mp4", options=_FILE_OPTIONS)
            self._container.metadata["comment"] = MARK.decode()
            rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
            stream = self._container.add_stream(ENCODER, rate, _CODEC_OPTIONS)
        self._stream = cast(VideoStream, stream)
        self._stream.height, self._stream.width = size_hw
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.codec_context.gop_size = max(1, round(2 * fps))
        try:
            self._stream.codec_context.open()
        except av.error.FFmpegError as error:
            with suppress(av.error.FFmpegError):
                self._container.close()
            raise InvalidInput(
                f"H.264 cannot hold frames of {size_hw[1]}x{size_hw[0]}, {fps:g} a second",
                hint="write to a folder of images instead",
            ) from error

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Add a frame, RGB uint8 (H, W, 3), at a time; times that do not increase are moved."""
        planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        with self._reporting():
            self._mux(frame)

    def close(self) -> None:
        """Write what the encoder holds, and the index of the file."""
        with self._reporting():
            try:
                if not self._has_failed:
                    self._mux(None)
            finally:
                self._container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        self._has_failed = (
            True  # FFmpeg crashes if it goes on after the header could not be written
        )
        self._container.mux(self._stream.encode(frame))
        self._has_failed = False

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def count_frames(path: Path) -> int:
    """Count the frames that a video file holds, up to its end or the first damage."""
    count = 0
    with suppress(av.error.FFmpegError), av.open(str(path.absolute())) as container:
        if container.streams.video:  # a full disk may leave a file without a stream
            for packet in container.demux(video=0):
                count += packet.size > 0
    return count
