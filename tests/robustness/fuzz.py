"""Feed damaged input to every reader. ``make fuzz N=20000``.

A case passes if the reader accepts the input or raises an error that the commands show as one line.
Tracebacks, crashes, hangs and memory beyond the limit are failures; their input is kept.

Cases run in children that are forked from a process with all libraries. A child that dies is blamed on the
case that it was in.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENCV_LOG_LEVEL="SILENT", OPENCV_FFMPEG_LOGLEVEL="-8")

from runtime.errors import EsnetError
from tests.robustness.readers import READERS, make_context

_MEMORY_BYTES = 2 << 30
_SECONDS = 20
_BATCH = 25
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def fuzz(count: int, seed: int, jobs: int, folder: Path) -> dict[str, Any]:
    """Run cases, and get the results as plain data.

    Args:
        count: Number of cases.
        seed: Random seed; a case depends on it and on its own number only.
        jobs: Processes.
        folder: Folder for the input of failed cases.
    """
    started = time.monotonic()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    context = make_context(folder)
    gc.freeze()
    workers = []
    for job in range(jobs):
        results = folder / f"job{job}.jsonl"
        pid = os.fork()
        if not pid:
            _run_job(range(job, count, jobs), seed, folder, context, results)
            os._exit(0)
        workers.append((pid, results))
    rows = []
    for pid, results in workers:
        os.waitpid(pid, 0)
        rows += [json.loads(line) for line in results.read_text().splitlines()]
    by_reader: dict[str, Counter[str]] = {}
    for row in rows:
        by_reader.setdefault(row["reader"], Counter())[row["outcome"]] += 1
    return {
        "cases": len(rows),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_mb": max((row["rss_mb"] for row in rows), default=0),
        "slowest_seconds": max((row.get("seconds", 0) for row in rows), default=0),
        "readers": {name: dict(counts) for name, counts in sorted(by_reader.items())},
        "failures": [row for row in rows if row["outcome"] not in ("accepted", "refused")],
    }


def _run_job(cases: range, seed: int, folder: Path, context: dict[str, Any], results: Path) -> None:
    """Run cases in children of a few cases each, and log their outcomes."""
    left = list(cases)
    with results.open("w") as log:
        while left:
            rows = _run_batch(left[:_BATCH], seed, folder, context)
            left = left[len(rows) :]
            log.writelines(json.dumps(row) + "\n" for row in rows)


def _run_batch(
    cases: list[int], seed: int, folder: Path, context: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run cases in one child until it dies; get the rows of those that ran."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _limit()
        for index in cases:
            row = _run_case(index, seed, folder, context)
            os.write(writing, json.dumps(row).encode() + b"\n")
        os._exit(0)  # waits for no thread of a library
    os.close(writing)
    with open(reading, "rb") as pipe:
        rows = [json.loads(line) for line in pipe]
    _, status, usage = os.wait4(pid, 0)
    if len(rows) < len(cases):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        outcome = "hang" if number == signal.SIGALRM else f"crash, status {status}"
        index = cases[len(rows)]
        rows.append({"reader": _reader_of(index), "index": index, "outcome": outcome})
    for row in rows:
        row["rss_mb"] = usage.ru_maxrss // 1024
    return rows


def _limit() -> None:
    """Limit the memory of this process to what it has and 2 GiB."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _reader_of(index: int) -> str:
    names = [name for name, (share, _) in READERS.items() for _ in range(share)]
    return names[index % len(names)]


def _run_case(index: int, seed: int, folder: Path, context: dict[str, Any]) -> dict[str, Any]:
    name, started = _reader_of(index), time.monotonic()
    place = folder / f"case-{index}"
    place.mkdir()
    os.chdir(place)
    signal.alarm(_SECONDS)
    outcome, detail = "accepted", ""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            text = READERS[name][1](Random(f"{seed}/{index}"), place, context) or ""
        if found := _CONTROL.search(text):
            outcome, detail = f"control character {found[0]!a} in the output", ascii(text[:500])
    except (EsnetError, OSError) as error:
        outcome, detail = "refused", f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        outcome, detail = "traceback", traceback.format_exc()[-1500:]
    signal.alarm(0)
    if outcome in ("accepted", "refused"):
        shutil.rmtree(place)
    seconds = round(time.monotonic() - started, 2)
    detail = detail.encode(errors="backslashreplace").decode()
    return {
        "reader": name,
        "index": index,
        "outcome": outcome,
        "detail": detail,
        "seconds": seconds,
    }


def main() -> None:
    """Parse the options, run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="Write the results here.")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    results = fuzz(options.count, options.seed, options.jobs, folder)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    for failure in results["failures"][:20]:
        print(
            f"{failure['reader']} {failure['index']}: {failure['outcome']}\n{failure.get('detail', '')}"
        )
    print({key: value for key, value in results.items() if key != "failures"})
    if results["failures"]:
        sys.exit(f"{len(results['failures'])} failures; input in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
