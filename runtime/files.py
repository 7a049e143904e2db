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
    """Lend a temporary path beside ``path``; it takes the name when the block ends without an error.

    The temporary file has the same suffix (encoders choose by it) and is removed after an error or Ctrl-C.

    Raises:
        OSError: The folder is missing or not writable; raised before the block runs.
    """
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        _create(temporary, reported_as=path)
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it has its name, or its folder could not be used
            temporary.unlink()


def cache_dir() -> Path:
    """Get this toolkit's cache folder, ``$XDG_CACHE_HOME/esnet-deploy``; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "esnet-deploy"


def sha256_of(path: Path) -> str:
    """Hash a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _create(temporary: Path, *, reported_as: Path) -> None:
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        error.filename = str(reported_as)  # the name that the caller knows
        raise
