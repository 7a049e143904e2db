"""Atomic writes, file hashes, and the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it is renamed to ``path`` when the block ends without an error.

    The temporary file has the same suffix, because encoders choose by it. An error or Ctrl-C removes it.

    Raises:
        OSError: The folder is missing or not writable; raised before the block runs.
    """
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        _create(temporary, reported_as=path)
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or could not be created
            temporary.unlink()


def cache_dir() -> Path:
    """Get the cache folder, ``$XDG_CACHE_HOME/esnet-deploy``; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "esnet-deploy"


def read_cache(path: Path) -> bytes:
    """Read a cache file; empty if there is none or it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def save_cache(path: Path, content: bytes) -> str | None:
    """Write a cache file, and its folder if needed; get a warning in one line if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        return f"cannot write the cache {path}: {error.strerror}"
    return None


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _create(temporary: Path, *, reported_as: Path) -> None:
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        error.filename = str(reported_as)  # the path that the caller passed
        raise
