"""Output paths, atomic writes, file hashes, and the cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from runtime.errors import InvalidInput


def require_outputs(
    *paths: Path | None, source: Path | None = None, suffixes: Sequence[str] = ()
) -> None:
    """Refuse output files that cannot be written, before any work is done.

    Args:
        paths: Files to write; ``None`` is skipped.
        source: Input file, which must not be overwritten.
        suffixes: Endings that the files may have, such as ``.onnx``; none allows any.

    Raises:
        InvalidInput: A folder is missing or not writable, or a path is a folder, a device or ``source``, or
            has another ending.
    """
    for path in filter(None, paths):
        folder = path.parent
        if not folder.is_dir():
            raise InvalidInput(
                f"output folder {folder} does not exist",
                hint=shlex.join(["mkdir", "-p", str(folder)]),
            )
        problems = {
            "is a folder": path.is_dir(),
            "is not a regular file": path.exists() and not path.is_file(),
            "is the input file itself": source and path.exists() and path.samefile(source),
            "is in a folder that is not writable": not os.access(folder, os.W_OK),
        }
        if problem := next((text for text, is_true in problems.items() if is_true), None):
            raise InvalidInput(f"output {path} {problem}", hint="choose another file")
        if suffixes and path.suffix.lower() not in suffixes:
            raise InvalidInput(
                f"output {path} does not end in {' or '.join(suffixes)}",
                hint=f"for example {shlex.quote(str(path.with_suffix(suffixes[0])))}",
            )


@contextlib.contextmanager
def atomic_path(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it is renamed to ``path`` when the block ends without an error.

    The temporary file has the same suffix, because encoders choose by it. An error, Ctrl-C or SIGTERM removes
    it; one that a killed process left is removed by the next call with the same ``path``.

    Args:
        path: File to create or replace.
        sync: False skips waiting for the disk: after a power cut, the file may be empty.

    Raises:
        OSError: The folder is missing or not writable; raised before the block runs.
    """
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with _create(temporary, reported_as=path) as created:
            with contextlib.suppress(OSError):  # some network drives have no locks
                fcntl.flock(created, fcntl.LOCK_EX)  # until the end of the block or process
            yield temporary
            if sync:
                with temporary.open("rb") as file:
                    os.fsync(file)
            temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is reported without a name
        raise
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or could not be created
            temporary.unlink()


def cache_dir() -> Path:
    """Get the cache folder, ``$XDG_CACHE_HOME/esnet-deploy``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "esnet-deploy"


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
        with atomic_path(path, sync=False) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        return f"cannot write the cache {path}: {error.strerror}"
    return None


def trim_cache(folder: Path, max_bytes: int) -> None:
    """Delete the files of a folder that were written or used longest ago, until ``max_bytes`` are left."""
    with contextlib.suppress(OSError):  # another process deletes, too
        files = [(path, path.stat()) for path in folder.iterdir()]
        excess = sum(status.st_size for _, status in files) - max_bytes
        for path, status in sorted(files, key=lambda item: item[1].st_mtime):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= status.st_size


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _create(temporary: Path, *, reported_as: Path) -> BinaryIO:
    try:
        return temporary.open("xb")
    except OSError as error:
        error.filename = str(reported_as)  # the path that the caller passed
        raise


def _remove_leftovers(path: Path) -> None:
    """Delete the temporary files of ``path`` that no process writes any more."""
    name = f".{glob.escape(path.stem)}-{'[0-9a-f]' * 8}{glob.escape(path.suffix)}"
    for leftover in glob.iglob(str(Path(glob.escape(str(path.parent))) / name)):
        with contextlib.suppress(OSError), open(leftover, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(leftover)
