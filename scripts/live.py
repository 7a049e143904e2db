"""Measure a live source: the age of its results, what outages cost, and what is left after hours.

    python scripts/live.py MODEL [--minutes 1] [--outages 0] [--size 1080x1920] [--json FILE]

A local MJPEG camera in another process sends 30 frames a second. With ``--outages`` it stalls, dies, and
comes back with another resolution, that many times, evenly distributed.
"""

from __future__ import annotations

import argparse
import http.server
import itertools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np

from benchmarks.environment import describe_environment
from benchmarks.timing.latency import machine_reference
from esnet import Segmenter
from esnet.data.scenes import street_scene
from runtime.console import parse_height_width
from runtime.errors import SourceLost
from runtime.files import atomic_path
from runtime.media.sources import open_source

_FPS = 30
_REFERENCE = machine_reference()
_STALL_SECONDS, _DEAD_SECONDS = 8.0, 3.0


def main() -> None:
    """Measure and print; write JSON if asked for."""
    parser = argparse.ArgumentParser(description="Measure a live source.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", help="as for esnet-segment")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--outages", type=int, default=0)
    parser.add_argument("--size", default="1080x1920", help="height x width of the camera's frames")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    options = parser.parse_args()
    report: dict[str, object] = {"environment": describe_environment()}
    size_hw = parse_height_width(options.size, "--size")
    parent, child = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    camera = context.Process(
        target=_run_camera, args=(child, size_hw, 60 * options.minutes, options.outages)
    )
    camera.start()
    try:
        report |= _measure(f"http://127.0.0.1:{parent.recv()}/", options)
    finally:
        camera.terminate()
        camera.join()
    print(json.dumps(report, indent=2))
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")


def _measure(url: str, options: argparse.Namespace) -> dict[str, object]:
    """Segment the camera until its time is over; ages and times are in ms."""
    # Filled, so that the measurement itself takes no more memory later. Columns: minute, age, inference time.
    samples = np.full((int(1.2 * 60 * options.minutes * _FPS), 3), np.nan)
    references = np.full((int(1.2 * 60 * options.minutes), 2), np.nan)
    rss_mb: list[float] = []
    count = num_references = 0
    with Segmenter.open(options.model, backend=options.backend) as segmenter:
        segmenter.segment(np.zeros((*parse_height_width(options.size, "--size"), 3), np.uint8))
        threads, descriptors = threading.active_count(), _num_descriptors()
        source = open_source(url, reconnect=60 if options.outages else 0)
        started = time.monotonic()
        with suppress(SourceLost), closing(segmenter.stream(source)) as results:
            for result in results:
                now = time.monotonic() - started
                if now >= 60 * options.minutes:
                    break
                samples[count] = now / 60, 1e3 * source.age(result.timestamp), result.infer_ms
                count += 1
                if now >= num_references:
                    references[num_references] = now / 60, _reference_ms()
                    num_references = int(now) + 1
                if now >= 60 * len(rss_mb):
                    rss_mb.append(_rss_mb())
        left_threads, left_descriptors = threading.active_count(), _num_descriptors()
    minutes, ages, infer_ms = samples[:count].T
    references = references[~np.isnan(references[:, 0])]
    sixth = options.minutes / 6

    def p99_by_reference(first: float) -> float:
        ratio = np.percentile(ages[(minutes >= first) & (minutes < first + sixth)], 99)
        of = references[(references[:, 0] >= first) & (references[:, 0] < first + sixth), 1]
        return round(float(ratio / np.percentile(of, 99)), 2)

    return {
        "results": count,
        "drops": source.drops,
        "gaps": [f"{gap.start:.1f} s: {gap.seconds:.1f} s, {gap.reason}" for gap in source.gaps],
        "age_ms": _percentiles(ages),
        "inference_ms": _percentiles(infer_ms),
        "age_less_inference_ms": _percentiles(ages - infer_ms),
        "share_above_two_intervals": float(np.mean(ages - infer_ms > 2e3 / _FPS)),
        "p99_by_p99_of_reference_in_sixths": [p99_by_reference(part * sixth) for part in range(6)],
        "rss_mb": [round(value, 2) for value in rss_mb],
        "threads_before_after": [threads, left_threads],
        "descriptors_before_after": [descriptors, left_descriptors],
    }


def _reference_ms() -> float:
    """Time a fixed computation, which shows the speed of the machine."""
    started = time.perf_counter()
    _REFERENCE.call(0)
    return 1e3 * (time.perf_counter() - started)


def _percentiles(values: np.ndarray) -> dict[str, float]:
    names = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, of)), 2) for name, of in names.items()}


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def _num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _run_camera(parent: Connection, size_hw: tuple[int, int], seconds: float, outages: int) -> None:
    """Serve MJPEG; each outage is a stall, a run, a time without a server, and another resolution."""
    sizes = [size_hw, (size_hw[0] * 2 // 3, size_hw[1] * 2 // 3)]
    jpegs = [
        [
            cv2.imencode(".jpg", street_scene(size, seed=seed).image[..., ::-1])[1].tobytes()
            for seed in range(8)
        ]
        for size in sizes
    ]
    period, port = seconds / (outages + 1), 0
    for cycle in range(outages + 1):
        has_outage = cycle < outages
        handler = partial(_Camera, jpegs[cycle % 2], period / 2 if has_outage else 2 * seconds)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.daemon_threads = True
        if not port:
            port = server.server_port
            parent.send(port)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        time.sleep(period - _DEAD_SECONDS if has_outage else 2 * seconds)
        server.shutdown()
        server.server_close()
        _Camera.generation += 1
        time.sleep(_DEAD_SECONDS)


class _Camera(http.server.BaseHTTPRequestHandler):
    """Sends frames to each client, stalls once, and hangs up when its server is gone."""

    generation = 0

    def __init__(self, jpegs: Sequence[bytes], stalls_at: float, *arguments: object) -> None:
        self._jpegs, self._stalls_at = jpegs, time.monotonic() + stalls_at
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send MJPEG."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        generation, started = _Camera.generation, time.monotonic()
        with suppress(OSError):
            for number in itertools.count():
                if _Camera.generation != generation:
                    return
                if time.monotonic() > self._stalls_at:
                    time.sleep(_STALL_SECONDS)
                    return
                jpeg = self._jpegs[number % len(self._jpegs)]
                self.wfile.write(
                    f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                    + jpeg
                    + b"\r\n"
                )
                time.sleep(max(0.0, started + number / _FPS - time.monotonic()))


if __name__ == "__main__":
    main()
