"""A simulated camera: frames arrive at a fixed rate, and a slow model drops all but the newest."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from benchmarks.frames import FrameSet
from benchmarks.models import ModelIdentity
from benchmarks.timing.latency import cycle
from benchmarks.timing.statistics import Summary, summarize

_WARMUP_CALLS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraResult:
    """Ages and dropped frames of a model behind a camera."""

    model: ModelIdentity
    """The measured model."""
    camera_fps: float
    """Frame rate of the camera, frames per second."""
    seconds: float
    """Wall time from the first arrival to the last result, seconds."""
    offered: int
    """Frames that arrived."""
    done: int
    """Frames that were labelled."""
    dropped: int
    """Frames that were replaced by a newer one before processing."""
    missed: int
    """Labelled frames whose age exceeds one frame interval."""
    scopes: dict[str, Summary]
    """``age``: time from the arrival of a frame to its class map, milliseconds."""

    @property
    def keeps_up(self) -> bool:
        """True if every frame was labelled within one frame interval."""
        return self.dropped == 0 and self.missed == 0


def measure_camera(
    identity: ModelIdentity,
    segment: Callable[[np.ndarray], object],
    frames: FrameSet,
    camera_fps: float,
    *,
    seconds: float = 10.0,
) -> CameraResult:
    """Send frames at a fixed rate to one thread that labels the newest.

    Args:
        identity: Identity for the result.
        segment: Takes a frame, RGB uint8 (H, W, 3), and returns when its class map is complete.
        frames: Frames of the camera, used in a cycle.
        camera_fps: Frame rate of the camera, above 0.
        seconds: Length of the measurement.
    """
    images = cycle(frames.frames)
    for index in range(_WARMUP_CALLS):
        segment(images(index))
    arrivals: SimpleQueue[tuple[int, float] | None] = SimpleQueue()
    ages: list[float] = []

    def work() -> float:
        """Label the newest frame until ``None`` arrives; return the time of the last result."""
        finished, is_open = 0.0, True
        while is_open:
            items = [arrivals.get()]
            while not arrivals.empty():  # this thread is the only consumer
                items.append(arrivals.get())
            waiting = [item for item in items if item is not None]
            is_open = len(waiting) == len(items)
            if waiting:
                index, arrived = waiting[-1]
                segment(images(index))
                finished = time.perf_counter()
                ages.append((finished - arrived) * 1e3)
        return finished

    num_offered = max(1, round(seconds * camera_fps))
    with ThreadPoolExecutor(1) as pool:
        started = time.perf_counter()
        worker = pool.submit(work)
        try:
            for index in range(num_offered):
                # Relative to the start: a late wake-up does not shift the later frames.
                due = started + index / camera_fps
                time.sleep(max(0.0, due - time.perf_counter()))
                if worker.done():
                    break
                arrivals.put((index, due))
        finally:
            arrivals.put(None)
    return CameraResult(
        model=identity,
        camera_fps=camera_fps,
        seconds=worker.result() - started,
        offered=num_offered,
        done=len(ages),
        dropped=num_offered - len(ages),
        missed=sum(age > 1e3 / camera_fps for age in ages),
        scopes={"age": summarize(ages)},
    )
