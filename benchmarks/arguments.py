"""Parse the arguments of ``esnet-bench``."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.errors import BenchmarkError
from runtime.artefact.card_values import MAX_BATCH
from runtime.files import require_outputs


def parse_mode(text: str) -> tuple[str, float]:
    """Parse ``latency``, ``throughput``, ``camera`` or ``camera:FPS``."""
    match = re.fullmatch(r"(latency|throughput|camera)|(camera):(\d{1,4}(?:\.\d{1,4})?)", text)
    if match is None or not (fps := float(match[3] or 30)):
        raise BenchmarkError(
            f"unknown mode {text!r}",
            hint="latency, throughput, or camera:30 for a 30 FPS camera; the rate must be above 0 FPS",
        )
    return match[1] or match[2], fps


def parse_batches(text: str | None, mode: str) -> tuple[int, ...]:
    """Parse ``1,4,8``; ``None`` is no size."""
    if text is None:
        return ()
    if mode == "camera":
        raise BenchmarkError("a camera gives one frame at a time", hint="omit --batch")
    sizes = [int(word) if re.fullmatch("[0-9]{1,9}", word) else 0 for word in text.split(",")]
    if not 1 <= min(sizes) <= max(sizes) <= MAX_BATCH:
        raise BenchmarkError(
            f"--batch {text!r} is not a list of batch sizes", hint="for example --batch 1,4,8"
        )
    return tuple(dict.fromkeys(sizes))


def parse_percent(text: str) -> float:
    """Parse ``5%`` or ``5`` as 0.05."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%?", text)
    if match is None:
        raise BenchmarkError(f"{text!r} is not a percentage", hint="for example --max-slower 5%")
    return float(match[1]) / 100


def require_reports(
    json_path: Path | None,
    markdown_path: Path | None = None,
    csv_path: Path | None = None,
    html_path: Path | None = None,
) -> None:
    """Check the paths of reports; their endings keep ``--json model.onnx`` from replacing a model.

    Raises:
        InvalidInput: See ``require_outputs``.
    """
    require_outputs(json_path, suffixes=(".json",))
    require_outputs(markdown_path, suffixes=(".md", ".markdown"))
    require_outputs(csv_path, suffixes=(".csv",))
    require_outputs(html_path, suffixes=(".html", ".htm"))
