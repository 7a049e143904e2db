"""Decoders of videos, network streams and cameras: PyAV if it is installed, OpenCV without it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import cv2

from runtime.media.frame_source import Decoded, Decoder, DecoderError


def open_decoder(target: str, *, timeout: float | None = None) -> Decoder:
    """Open a video file or a network stream.

    Args:
        target: Absolute path, or URL.
        timeout: Seconds to wait for data, and half of the seconds to wait for a connection; ``None`` for
            files.

    Raises:
        DecoderError: It cannot be opened or holds no video.
    """
    if importlib.util.find_spec("av") is None:
        return OpenCvDecoder(target, cv2.CAP_FFMPEG, timeout=timeout)
    from runtime.media.pyav_decoder import PyAvDecoder

    return PyAvDecoder(target, timeout=timeout)


class OpenCvDecoder:
    """A ``Decoder`` on ``cv2.VideoCapture``."""

    def __init__(self, target: str | int, api: int, *, timeout: float | None = None) -> None:
        """Open a file, URL or camera.

        Args:
            target: As for ``open_decoder``, or the number of a camera.
            api: OpenCV's constant for the library that reads it, such as ``cv2.CAP_FFMPEG``.
            timeout: As for ``open_decoder``; FFmpeg alone obeys it.
        """
        self.damaged: list[str] = []
        settings: list[int] = []
        if timeout is not None and api == cv2.CAP_FFMPEG:
            settings = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(2e3 * timeout)]
            settings += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(1e3 * timeout)]
            settings += [cv2.CAP_PROP_N_THREADS, 1]  # each thread more holds back a frame
        with _utf8_name(target) as name:
            self._capture = cv2.VideoCapture(name, api, settings)
        if not self._capture.isOpened():
            raise DecoderError("OpenCV cannot open it")
        count, fps = map(self._capture.get, (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        self.num_frames = int(count) if count > 0 else None
        self.fps = fps if fps > 0 else None
        self.is_finite = self.num_frames is not None
        self.is_paced = not str(target).partition("?")[0].endswith(".m3u8")

    def __iter__(self) -> Iterator[Decoded]:
        while True:
            is_read, image = self._capture.read()
            if not is_read:
                return
            seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            yield Decoded(partial(cv2.cvtColor, image, cv2.COLOR_BGR2RGB), seconds)

    def seek(self, seconds: float) -> None:
        """Move to a position; OpenCV decodes from the key frame before it."""
        self._capture.set(cv2.CAP_PROP_POS_MSEC, 1e3 * seconds)

    def close(self) -> None:
        """Free the source."""
        self._capture.release()


@contextmanager
def _utf8_name(target: str | int) -> Iterator[str | int]:
    """Get a name for OpenCV, which crashes on names that are not UTF-8."""
    if "\ufffd" not in os.fsencode(str(target)).decode(errors="replace"):
        yield target
    else:
        with open(str(target), "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
