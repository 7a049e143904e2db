"""Image files as frames: one file, a folder, a glob pattern, or a list."""

from __future__ import annotations

import glob
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.media.frame_source import Frame, FrameSource

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 100_000_000
# 16 bits in four channels, uncompressed.
_MAX_BYTES_PER_PIXEL = 8
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_END, _MAX_JPEG_TAIL = b"\xff\xd9", 1 << 20  # some cameras append data
_JPEG_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


def open_image(path: Path) -> FrameSource:
    """Make a source of one image file."""
    return _image_source("image", str(path), path, [path], path.parent)


def open_folder(path: Path, *, recursive: bool = False) -> FrameSource:
    """Make a source of the images of a folder, in order of their paths; hidden ones are left out.

    Raises:
        InvalidInput: The folder holds no images.
    """
    found = filter(_is_image, path.rglob("*") if recursive else path.iterdir())
    files = (file for file in found if not _is_hidden(file.relative_to(path)))
    return _image_source("folder", str(path), path, sorted(files), path)


def open_glob(pattern: str) -> FrameSource:
    """Make a source of the images that match a pattern; ``**`` matches any number of folders.

    Raises:
        InvalidInput: No image matches.
    """
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    files = filter(_is_image, map(Path, glob.iglob(pattern, recursive=True)))
    return _image_source("pattern", pattern, root, sorted(files), root)


def open_list(path: Path) -> FrameSource:
    """Make a source of the images that a text file names, one a line, relative to its folder.

    Blank lines and lines that start with ``#`` are left out. An image outside the folder of the list gets
    its whole path as its name.

    Raises:
        InvalidInput: The file names no images.
    """
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    names = [os.fsdecode(line.strip()) for line in lines]
    files = [path.parent / name for name in names if name and not name.startswith("#")]
    return _image_source("list", str(path), path, files, path.parent)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file to RGB, uint8 (H, W, 3), rotated as its EXIF data say.

    Raises:
        InvalidInput: Not a readable image, or one of more than ``max_pixels`` pixels.
    """
    return decode_image(read_image_bytes(path, max_pixels=max_pixels), str(path))


def read_image_bytes(path: Path, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Read the content of an image file whose header was checked, for a decoder.

    Raises:
        InvalidInput: As for ``read_image``.
    """
    try:
        if path.stat().st_size > max_pixels * _MAX_BYTES_PER_PIXEL:
            raise InvalidInput(f"{path} is too large: {path.stat().st_size:,} bytes")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{path} cannot be read: {reason}") from error
    _check_header(data, str(path), max_pixels)
    if data.startswith(b"\xff\xd8") and _JPEG_END not in data[-_MAX_JPEG_TAIL:]:
        raise InvalidInput(f"{path} is truncated: it has no end of a JPEG file")
    return data


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the content of an image file; see ``read_image``.

    Args:
        data: Content of a file of one of ``IMAGE_SUFFIXES``.
        name: Name of the image, for messages.
        max_pixels: Limit, checked before anything is decoded.

    Raises:
        InvalidInput: As for ``read_image``.
    """
    _check_header(data, name, max_pixels)
    return cv2.cvtColor(decode_stored(data, name, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def decode_stored(data: bytes, name: str, flags: int) -> np.ndarray:
    """Decode an image whose header was checked with OpenCV.

    Args:
        data: Content of the file.
        name: Name of the image, for messages.
        flags: OpenCV's flags, such as ``cv2.IMREAD_UNCHANGED``.

    Raises:
        InvalidInput: Not a readable image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError):
        image = None
    if image is None:
        raise InvalidInput(f"{name} cannot be read as an image")
    return np.asarray(image)


def _check_header(data: bytes, name: str, max_pixels: int) -> None:
    try:
        height, width = _size_from_header(data)
    except (struct.error, LookupError, ValueError):
        raise InvalidInput(f"{name} cannot be read as an image") from None
    if height * width > max_pixels:
        raise InvalidInput(f"{name} has {width}x{height} pixels, more than {max_pixels:,}")


def _image_source(
    kind: str, name: str, path: Path, files: Iterable[Path], root: Path
) -> FrameSource:
    """Make a source of image files, in the order given; a repeated file is read once."""
    places = {_relative(file, root): file for file in files}
    if not places:
        raise InvalidInput(
            f"{kind} {name} holds no images",
            hint=f"images are files ending in {' '.join(sorted(IMAGE_SUFFIXES))}",
        )
    stems = {place: place.with_suffix("") for place in places}
    has_unique_stems = len(set(stems.values())) == len(stems)
    named = {
        (stems[place] if has_unique_stems else place).as_posix(): file
        for place, file in places.items()
    }

    def decode(source: FrameSource) -> Iterator[Frame]:
        for frame_name, file in source.files.items():
            if source.stopping.is_set():
                return
            try:
                yield Frame(read_image(file), frame_name)
            except InvalidInput as error:
                source.skipped.append(str(error))

    return FrameSource(name, decode, path=path, num_frames=len(named), files=named)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _relative(file: Path, root: Path) -> Path:
    """Get the place of a file below ``root``, or below / if it is elsewhere: never upwards."""
    absolute, base = (Path(os.path.abspath(path)) for path in (file, root))
    return absolute.relative_to(base if absolute.is_relative_to(base) else absolute.anchor)


def _size_from_header(data: bytes) -> tuple[int, int]:
    """Read height and width from the header of a PNG, JPEG, WebP, BMP, TIFF or PPM file.

    Raises:
        ValueError: Another format, or damaged; also ``LookupError`` and ``struct.error``.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_size(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    elif data.startswith(b"BM"):
        is_old = struct.unpack_from("<I", data, 14) == (12,)
        width, height = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff_size(data)
    elif header := re.match(rb"P[1-6](?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)", data[:4096]):
        width, height = int(header[1]), int(header[2])
    else:
        raise ValueError("unknown format")
    return abs(height), width


def _png_size(data: bytes) -> tuple[int, int]:
    """Read the first chunk of a PNG file; OpenCV would allocate what the length of any chunk says."""
    position, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        if position == 8 and kind != b"IHDR":
            raise ValueError("no header")
        position += 12 + length
    if position > len(data):
        raise ValueError("truncated")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Find the start-of-frame segment of a JPEG file."""
    position = 2
    while True:
        position = data.index(b"\xff", position) + 1
        marker = data[position]
        if marker in _JPEG_SIZE_MARKERS:
            height, width = struct.unpack_from(">HH", data, position + 4)
            return height, width
        if marker not in (*_JPEG_BARE_MARKERS, 0xFF):  # 0xFF is a fill byte
            position += 1 + int(struct.unpack_from(">H", data, position + 1)[0])


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the first chunk of a WebP file: extended, lossless or lossy."""
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int(struct.unpack_from("<I", data, 21)[0])
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return height, width


def _tiff_size(data: bytes) -> tuple[int, int]:
    """Read the first directory of a TIFF or BigTIFF file."""
    order = "<" if data.startswith(b"I") else ">"
    is_big = b"+" in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    count_type, entry_size, value_at = ("Q", 20, 12) if is_big else ("H", 12, 8)
    (count,) = struct.unpack_from(order + count_type, data, start)
    sides: dict[int, int] = {}
    for index in range(min(count, 0xFFFF)):
        entry = start + struct.calcsize(count_type) + index * entry_size
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
            value_type = {3: "H", 4: "I", 16: "Q"}[kind]
            (side,) = struct.unpack_from(order + value_type, data, entry + value_at)
            sides[tag] = max(side, sides.get(tag, 0))
    return sides[_TIFF_HEIGHT], sides[_TIFF_WIDTH]
