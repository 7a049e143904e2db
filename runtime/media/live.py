"""Cameras and network streams: the newest frame wins, and a lost connection is made again."""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import cv2

from runtime.errors import InvalidInput, SourceLost
from runtime.media.decoder import OpenCvDecoder, open_decoder
from runtime.media.frame_source import Decoded, Decoder, DecoderError, Frame, FrameSource, Gap

URL_SCHEMES = ("http", "https", "rtsp", "rtsps")
_POLL_SECONDS = 0.1
_FIRST_DELAY, _MAX_DELAY = 0.25, 8.0
# Frame times that are further away than this start a new count (HLS).
_MAX_LEAD_SECONDS = 15.0


def open_stream(url: str, *, reconnect: float, timeout: float) -> FrameSource:
    """Make a source of a network stream; it connects when it is iterated.

    A stream that says how long it is, such as an MP4 file on a server, drops no frame and ends with its last.

    Raises:
        InvalidInput: The URL names no host.
    """
    parts = urlsplit(url)
    if not parts.hostname:
        raise InvalidInput(f"{url!r} names no host", hint="for example rtsp://192.168.1.20/live")
    address = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    name = f"{parts.scheme}://{address}"
    hint = "check address, user, password and network"
    return _live_source(name, address, hint, lambda: open_decoder(url, timeout=timeout), reconnect)


def open_camera(device: str, *, reconnect: float) -> FrameSource:
    """Make a source of a local camera, by its number or as ``/dev/video0``; OpenCV reads it."""
    target = int(device) if device.isdecimal() else device
    label = f"camera{device}" if device.isdecimal() else device.rpartition("/")[2]
    api = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
    hint = "cameras are listed by: ls /dev/video*"
    return _live_source(device, label, hint, lambda: OpenCvDecoder(target, api), reconnect)


def _live_source(
    name: str, label: str, hint: str, connect: Callable[[], Decoder], reconnect: float
) -> FrameSource:
    stem = re.sub(r"[^\w.-]+", "_", label).strip("_")

    def decode(source: FrameSource) -> Iterator[Frame]:
        return _Receiver(source, hint, connect, reconnect).frames(stem)

    return FrameSource(name, decode, is_live=True)


class _Receiver:
    """Receives frames in a thread of its own, and keeps the newest one until it is taken."""

    def __init__(
        self, source: FrameSource, hint: str, connect: Callable[[], Decoder], reconnect: float
    ) -> None:
        self._source, self._hint = source, hint
        self._connect, self._reconnect = connect, reconnect
        self._changed = threading.Condition()
        self._newest: Decoded | None = None
        self._received = 0
        self._arrived = 0.0
        self._problem = ""
        self._error: BaseException | None = None
        self._has_ended = False

    def frames(self, stem: str) -> Iterator[Frame]:
        """Give the newest frame each time; their numbers count the dropped ones, too."""
        # No daemon: a thread that is inside a library while Python exits would abort the process.
        thread = threading.Thread(target=self._run, name=f"receive {stem}")
        thread.start()
        try:
            while (taken := self._take()) is not None:
                decoded, index, arrived = taken
                try:
                    image = decoded.image()
                except InvalidInput:
                    self._count_drop()
                    continue
                yield Frame(image, f"{stem}_{index:06d}", arrived - self._source.started)
            if self._error is not None and not self._source.stopping.is_set():
                raise self._error
        finally:
            self._source.stop()
            thread.join()

    def _take(self) -> tuple[Decoded, int, float] | None:
        """Wait for a frame; ``None`` at the end."""
        with self._changed:
            while not self._source.stopping.is_set():
                if self._newest is not None:
                    newest, self._newest = self._newest, None
                    self._changed.notify_all()
                    return newest, self._received - 1, self._arrived
                if self._has_ended:
                    break
                self._changed.wait(_POLL_SECONDS)
        return None

    def _put(self, decoded: Decoded, *, keep_all: bool) -> None:
        with self._changed:
            while keep_all and self._newest is not None and self._is_wanted():
                self._changed.wait(_POLL_SECONDS)
            if self._newest is not None:
                self._source.drops += 1
            now = time.monotonic()
            if not self._received:
                self._source.started = now
            elif self._problem:
                start = self._arrived - self._source.started
                self._source.gaps.append(Gap(start, now - self._arrived, self._problem))
            self._newest, self._arrived, self._problem = decoded, now, ""
            self._received += 1
            self._changed.notify_all()

    def _count_drop(self) -> None:
        with self._changed:
            self._source.drops += 1

    def _run(self) -> None:
        try:
            self._receive()
        except BaseException as error:  # raised in the caller's thread
            self._error = error
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _receive(self) -> None:
        """Receive until the end of a file or the caller's; connect again after every other end."""
        attempts = 0
        while self._is_wanted():
            connected = time.monotonic()
            try:
                with closing(self._connect()) as decoder:
                    self._receive_from(decoder)
                    if decoder.is_finite:
                        return
                self._problem = "the stream ended"
            except DecoderError as error:
                self._problem = str(error)
            now = time.monotonic()
            if not self._received:
                message = f"no frames from {self._source.name}: {self._problem}"
                raise InvalidInput(message, hint=self._hint)
            left = self._arrived + self._reconnect - now
            if left <= 0:
                raise SourceLost(
                    f"{self._source.name} was lost, {now - self._arrived:.1f} s after its last frame: "
                    f"{self._problem}",
                    hint="check the camera and the network; --reconnect 10m waits longer",
                )
            if now - connected > _MAX_DELAY:
                attempts = 0
            delay = min(_MAX_DELAY, _FIRST_DELAY * 2**attempts) * random.uniform(0.5, 1)
            self._source.stopping.wait(min(delay, left))
            attempts += 1

    def _receive_from(self, decoder: Decoder) -> None:
        self._source.fps = decoder.fps
        offset = 0.0
        for decoded in decoder:
            decoder.damaged.clear()
            if not decoder.is_paced and not decoder.is_finite:
                lead = offset + decoded.seconds - time.monotonic()
                if not -_MAX_LEAD_SECONDS < lead < _MAX_LEAD_SECONDS:
                    offset, lead = time.monotonic() - decoded.seconds, 0.0
                self._source.stopping.wait(max(0.0, lead))
            if not self._is_wanted():
                return
            self._put(decoded, keep_all=decoder.is_finite)

    def _is_wanted(self) -> bool:
        # A program that ends without closing the iteration is not held up.
        return not self._source.stopping.is_set() and threading.main_thread().is_alive()
