"""``build-engine`` as a person sees it: a clock while TensorRT is silent, and the closing block."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from export.engine.build import EngineReport
from export.report import block
from runtime.artefact.engine_file import EngineRecord

_HEARTBEAT_SECONDS = 15.0
_TICK_SECONDS = 0.1


def waiter(*, show_progress: bool) -> Callable[[threading.Thread], None]:
    """Wait for a build: with a spinner for a person, else with a line every 15 s."""
    return _wait_with_spinner if show_progress else _wait_with_lines


def text_from_engine(report: EngineReport) -> str:
    """Say what was built, for what, in which types, and what to type next."""
    record = report.record
    sms = ", ".join(f"SM {sm}" for sm in record.target["sms"])
    gpu = record.target.get("gpu")
    rows = [
        ("engine", f"{report.path}  {report.status}"),
        ("from", f"{record.onnx['name']}  sha256 {record.onnx['sha256'][:12]}"),
        ("with", f"{record.tensorrt['kind']} {record.tensorrt['version']}"),
        ("for", f"{sms}{f', built on {gpu}' if gpu else ''}"),
        ("batch", ":".join(map(str, record.profile))),
        ("types", _types_text(record)),
    ]
    if record.kernels:
        moved = record.kernels["bytes_moved"] / 1e6
        rows.append(
            (
                "kernels",
                f"{record.kernels['count']}, {moved:.0f} MB moved a batch of {record.profile[1]}",
            )
        )
    if report.status != "dry run":
        size = report.path.stat().st_size / 1e6
        rows.append(
            (
                "wrote",
                f"{size:.2f} MB  sha256 {record.plan_sha256[:12]}  in {record.build['seconds']} s",
            )
        )
    rows += [("note", note) for note in report.notes]
    rows.append(("next", f"esnet-bench {report.path}"))
    return block(rows)


def _types_text(record: EngineRecord) -> str:
    asked = record.precision["asked"]
    built = record.precision["built"]
    if not built:
        return f"{asked} asked for"
    found = ", ".join(f"{count} {name}" for name, count in built.items())
    return f"{asked} asked for; convolutions compute in: {found}"


def _wait_with_spinner(thread: threading.Thread) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        progress.add_task("TensorRT is building the engine")
        while thread.is_alive():
            thread.join(_TICK_SECONDS)


def _wait_with_lines(thread: threading.Thread) -> None:
    started = time.monotonic()
    told = started
    while thread.is_alive():
        thread.join(_TICK_SECONDS)
        now = time.monotonic()
        if now - told >= _HEARTBEAT_SECONDS:
            told = now
            print(f"building for {now - started:.0f} s", file=sys.stderr, flush=True)
