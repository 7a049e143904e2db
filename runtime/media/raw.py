"""Raw frames on standard input, as FFmpeg and GStreamer write them to a pipe."""

from __future__ import annotations

import itertools
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.media.frame_source import Frame, FrameSource

_POLL_SECONDS = 0.1


class _Layout(NamedTuple):
    """Memory of a pixel format."""

    row_factor: float
    """Rows of bytes for each row of pixels."""
    channels: int
    """Bytes in a row for each pixel."""
    conversion: int | None
    """OpenCV's conversion to RGB; ``None`` if it is RGB."""
    multiple_hw: tuple[int, int] = (1, 1)
    """Height and width are multiples of these."""


_LAYOUTS = {
    "rgb24": _Layout(1, 3, None),
    "bgr24": _Layout(1, 3, cv2.COLOR_BGR2RGB),
    "rgba": _Layout(1, 4, cv2.COLOR_RGBA2RGB),
    "bgra": _Layout(1, 4, cv2.COLOR_BGRA2RGB),
    "gray": _Layout(1, 1, cv2.COLOR_GRAY2RGB),
    "yuyv422": _Layout(1, 2, cv2.COLOR_YUV2RGB_YUYV, (1, 2)),
    "yuv420p": _Layout(1.5, 1, cv2.COLOR_YUV2RGB_I420, (2, 2)),
    "nv12": _Layout(1.5, 1, cv2.COLOR_YUV2RGB_NV12, (2, 2)),
}
PIXEL_FORMATS = tuple(_LAYOUTS)
"""Pixel formats by FFmpeg's names; YUV is BT.601, limited range."""


def open_stdin(size_hw: tuple[int, int], pixel_format: str = PIXEL_FORMATS[0]) -> FrameSource:
    """Make a source of the raw frames on standard input; none is dropped.

    Args:
        size_hw: Height and width of the frames.
        pixel_format: One of ``PIXEL_FORMATS``.

    Raises:
        InvalidInput: Unknown pixel format, or a size that it does not allow; stdin is a terminal.
    """
    layout = _LAYOUTS.get(pixel_format)
    if layout is None:
        raise InvalidInput(
            f"unknown pixel format {pixel_format!r}", hint=f"one of {', '.join(PIXEL_FORMATS)}"
        )
    if any(side < 1 or side % of for side, of in zip(size_hw, layout.multiple_hw, strict=True)):
        raise InvalidInput(
            f"{pixel_format} frames cannot have height {size_hw[0]} and width {size_hw[1]}",
            hint="give the height and width of the frames in the pipe, for example --size 480x640",
        )
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidInput("stdin is a terminal", hint="pipe raw frames to the command")
    shape = (int(layout.row_factor * size_hw[0]), size_hw[1], layout.channels)

    def decode(source: FrameSource) -> Iterator[Frame]:
        for index in itertools.count():
            pixels = np.empty(shape, np.uint8)
            size = _read_into(pixels.reshape(-1).data, source)
            if size < pixels.size:
                if size and not source.stopping.is_set():
                    source.skipped.append(
                        f"stdin ended within frame {index}, after {size:,} of {pixels.size:,} bytes"
                    )
                return
            if not index:
                source.started = time.monotonic()
            image = pixels if layout.conversion is None else cv2.cvtColor(pixels, layout.conversion)
            yield Frame(image, f"stdin_{index:06d}", time.monotonic() - source.started)

    return FrameSource("stdin", decode)


def _read_into(buffer: memoryview, source: FrameSource) -> int:
    """Fill a buffer; get the bytes read, fewer at the end of the input or when the source is stopped."""
    descriptor, filled = sys.stdin.fileno(), 0
    while filled < len(buffer) and not source.stopping.is_set():
        if select.select([descriptor], [], [], _POLL_SECONDS)[0]:
            count = os.readv(descriptor, [buffer[filled:]])
            if not count:
                break
            filled += count
    return filled
