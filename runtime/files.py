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
