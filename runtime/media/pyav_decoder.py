"""Decoding by PyAV: FFmpeg with threads, real timestamps, rotation and time-outs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from runtime.media.frame_source import Decoded, DecoderError
from runtime.media.images import decode_image

# RTSP over TCP if the server can: no lost packets, no port to open in a firewall.
_OPTIONS = {"rtsp_flags": "prefer_tcp"}
_MAX_KEY_FRAME_SECONDS = 10.0


class PyAvDecoder:
    """A ``Decoder`` on ``av.open``."""

    def __init__(self, target: str, *, timeout: float | None = None) -> None:
        """Open a file or URL; see ``open_decoder``."""
        self.damaged: list[str] = []
        self._timeout = timeout
        times = None if timeout is None else (2 * timeout, timeout)
        options = _OPTIONS if target.startswith("rtsp") else {}
        started = time.monotonic()
        try:
            self._container = av.open(
                target, timeout=times, options=options, metadata_errors="replace"
            )
        except av.error.FFmpegError as error:
            if times and time.monotonic() - started >= times[0]:
                raise DecoderError(f"no answer for {times[0]:g} s") from error
            raise DecoderError(self._reason(error)) from error
        if not self._container.streams.video:
            self.close()
            raise DecoderError("it holds no video")
        self._stream = self._container.streams.video[0]
        # Each thread that decodes another frame holds back a frame, which a live source cannot afford.
        self._stream.thread_type = "AUTO" if timeout is None else "SLICE"
        self._to_rgb = VideoReformatter()
        kind = self._container.format.name
        rate = self._stream.average_rate
        self.num_frames = self._stream.frames or None
        self.fps = float(rate) if rate else None
        self.is_paced = kind != "hls"
        # A file on a server has a size, as a playlist has; "jpeg_pipe" and its like are single images.
        has_end = (self.is_paced and (self._container.size or 0) > 0) or kind.endswith("_pipe")
        self.is_finite = has_end or self._container.duration is not None
        self._has_jpegs = kind == "mpjpeg"

    def __iter__(self) -> Iterator[Decoded]:
        base = self._stream.time_base or 0
        start, seconds = float((self._stream.start_time or 0) * base), 0.0
        for packet in self._packets():
            if self._has_jpegs and packet.size:
                # Decoded when it is used: a frame that is dropped costs nothing.
                yield Decoded(partial(decode_image, bytes(packet), "a frame"), seconds)
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                self.damaged.append(f"after {seconds:.2f} s: {self._reason(error)}")
                continue
            for frame in frames:
                seconds = seconds if frame.time is None else frame.time - start
                yield Decoded(partial(self._image, frame), seconds)

    def seek(self, seconds: float) -> None:
        """Move to a key frame at or before a position."""
        if "mpeg" in self._container.format.name:  # has no index: may find a later key frame
            seconds -= _MAX_KEY_FRAME_SECONDS
        ticks = int(seconds / (self._stream.time_base or 1)) + (self._stream.start_time or 0)
        if seconds > 0:
            with suppress(av.error.FFmpegError):
                self._container.seek(ticks, stream=self._stream)

    def close(self) -> None:
        """Free the source."""
        self._container.close()

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError as error:
            raise DecoderError(self._reason(error)) from error

    def _image(self, frame: VideoFrame) -> np.ndarray:
        image = self._to_rgb.reformat(frame, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))

    def _reason(self, error: av.error.FFmpegError) -> str:
        """Get FFmpeg's text without the address, which may hold a password."""
        if isinstance(error, av.error.ExitError):
            return f"no data for {self._timeout:g} s"
        return str(error.strerror)
