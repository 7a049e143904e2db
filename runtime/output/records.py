"""JSON lines: one record for each frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runtime.files import require_outputs
from runtime.output.marks import require_own

STDOUT = Path("-")


@contextmanager
def record_sink(
    path: Path, *, source: Path | None = None, overwrite: bool = False, append: bool = False
) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Write records as they come, each in one piece.

    Args:
        path: File to write, or ``STDOUT``.
        source: Source of the frames, which must not be overwritten.
        overwrite: True to replace a file that ``esnet-segment`` did not write.
        append: True to add to a file that exists.

    Raises:
        InvalidInput: The file cannot be written, or is not one of ours.
    """
    if path == STDOUT:
        yield lambda record: print(json.dumps(record), flush=True)
        return
    require_outputs(path, source=source)
    if not overwrite:
        require_own(path)
    with path.open("a" if append else "w", encoding="utf-8") as file:
        yield lambda record: print(json.dumps(record), file=file, flush=True)
