"""Sources of frames by name: images, videos, cameras, network streams, and raw frames on stdin."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from runtime.errors import InvalidInput
from runtime.media.decoder import open_decoder
from runtime.media.frame_source import Decoder, DecoderError, Frame, FrameSource, Gap
from runtime.media.images import (
    IMAGE_SUFFIXES,
    open_folder,
    open_glob,
    open_image,
    open_list,
    read_image,
)
from runtime.media.live import URL_SCHEMES, open_camera, open_stream
from runtime.media.raw import open_stdin

__all__ = ["IMAGE_SUFFIXES", "Frame", "FrameSource", "Gap", "open_source", "read_image"]

LIST_SUFFIXES = frozenset({".lst", ".txt"})
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".ogv", ".ts", ".webm", ".wmv"}
)
_FILE_KINDS = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "list": LIST_SUFFIXES}
_RECONNECT_SECONDS = 30.0


def open_source(
    source: Path | str,
    *,
    recursive: bool = False,
    reconnect: float | None = None,
    timeout: float = 5.0,
    size_hw: tuple[int, int] | None = None,
    pixel_format: str | None = None,
    start: float | None = None,
) -> FrameSource:
    """Open an image, folder, glob pattern, list file, video, camera, network stream, or stdin.

    Args:
        source: Path; pattern such as ``photos/**/*.jpg``; ``.txt`` file with one image a line; number of a
            camera or ``/dev/video0``; ``rtsp://``, ``http://`` or ``https://`` URL; or ``-`` for raw frames
            on stdin. A path that exists comes before a pattern or a number.
        recursive: True to read a folder's sub-folders, too; they are kept in the names of the frames.
        reconnect: Seconds that a live source may stay away, 30 by default; then ``SourceLost`` is raised.
        timeout: Seconds without data after which a network stream counts as lost.
        size_hw: Height and width of raw frames.
        pixel_format: Pixel format of raw frames, one of ``runtime.media.raw.PIXEL_FORMATS``; default rgb24.
        start: Position in a video to start at, seconds.

    Raises:
        InvalidInput: No such source, none that holds frames, or a setting without effect.

    Example:
        >>> [(frame.name, frame.image.shape) for frame in open_source("photos")]
        [('a', (64, 128, 3)), ('b', (64, 128, 3))]
    """
    text, path = str(source), Path(source)
    kind = _kind_of(text, path)
    for setting, value, kinds in (
        ("recursive", recursive or None, ("folder",)),
        ("reconnect", reconnect, ("camera", "network stream")),
        ("size", size_hw, ("stdin",)),
        ("pixel-format", pixel_format, ("stdin",)),
        ("start", start, ("video",)),
    ):
        if value is not None and kind not in kinds:
            raise InvalidInput(
                f"{setting} has no effect on the {kind} {text!r}", hint=f"omit --{setting}"
            )
    reconnect = _RECONNECT_SECONDS if reconnect is None else reconnect
    if kind == "stdin":
        if size_hw is None:
            raise InvalidInput("raw frames on stdin need a size", hint="for example --size 480x640")
        return open_stdin(size_hw, pixel_format or "rgb24")
    if kind == "network stream":
        return open_stream(text, reconnect=reconnect, timeout=timeout)
    if kind == "camera":
        return open_camera(text, reconnect=reconnect)
    if kind == "folder":
        return open_folder(path, recursive=recursive)
    if kind == "video":
        return _open_video(path, start or 0.0)
    open_file = {"image": open_image, "list": open_list}
    return open_glob(text) if kind == "pattern" else open_file[kind](path)


def _kind_of(text: str, path: Path) -> str:
    """Tell what kind of source a text names."""
    scheme, separator, _ = text.partition("://")
    if text == "-":
        return "stdin"
    if separator and scheme.isalnum():
        if scheme.lower() in URL_SCHEMES:
            return "network stream"
        raise InvalidInput(
            f"unknown protocol {scheme}://", hint=f"one of {', '.join(URL_SCHEMES)}, or a file"
        )
    if path.is_dir():
        return "folder"
    if path.is_char_device() or (text.isdecimal() and not path.exists()):
        return "camera"
    if not path.is_file():
        if glob.has_magic(text):
            return "pattern"
        raise InvalidInput(
            f"source {text!r} does not exist",
            hint="give an image, folder, pattern, list, video, camera number, URL, or - for stdin",
        )
    for kind, suffixes in _FILE_KINDS.items():
        if path.suffix.lower() in suffixes:
            return kind
    raise InvalidInput(
        f"{path} is neither an image nor a video, by its suffix {path.suffix!r}",
        hint="; ".join(f"{kind}: {' '.join(sorted(of))}" for kind, of in _FILE_KINDS.items()),
    )


def _open_video(path: Path, start: float) -> FrameSource:
    """Make a source of a video file; the file is opened to read its length and frame rate."""

    def decode(source: FrameSource) -> Iterator[Frame]:
        with _decoder(path) as decoder:
            source.skipped = decoder.damaged
            if start:
                decoder.seek(start)
            index = None if start else 0
            for decoded in decoder:
                if source.stopping.is_set():
                    return
                if decoded.seconds < start:
                    continue
                if index is None:
                    index = round(decoded.seconds * (decoder.fps or 0))
                yield Frame(decoded.image(), f"{path.stem}_{index:06d}", decoded.seconds)
                index += 1

    with _decoder(path) as decoder:
        count, fps = decoder.num_frames, decoder.fps
    if count is not None and fps is not None:
        count = max(0, count - math.ceil(start * fps - 1e-6))
    return FrameSource(str(path), decode, path=path, num_frames=count, fps=fps)


@contextmanager
def _decoder(path: Path) -> Iterator[Decoder]:
    """Open a video file; FFmpeg would take the start of a relative ``10:30.mp4`` for a protocol."""
    try:
        with closing(open_decoder(str(path.absolute()))) as decoder:
            yield decoder
    except DecoderError as error:
        raise InvalidInput(
            f"{path} cannot be decoded as a video: {error}",
            hint="convert it, for example to H.264 in .mp4",
        ) from error
