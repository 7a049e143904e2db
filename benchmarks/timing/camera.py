"""A camera that does not wait: frames arrive at a fixed pace, the oldest is dropped, ages are what counts."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.frames import FrameSet
from benchmarks.models import Identity
from benchmarks.timing.latency import cycle
from benchmarks.timing.statistics import Summary, summarize

_WARMUP_CALLS = 5


@dataclass(frozen=True, kw_only=True)
class CameraResult(Identity):
    """How a model keeps up with a camera."""

    camera_fps: float
    """Frames the camera offers a second."""
    seconds: float
    """Wall time, first arrival to last result."""
    offered: int
    """Frames that arrived."""
    done: int
    """Frames that were labelled."""
    dropped: int
    """Frames that a newer one replaced before they were looked at."""
    missed: int
    """Frames that were labelled later than one frame's time after their arrival."""
    age: Summary
    """From a frame's arrival to its class map, milliseconds."""

    @property
    def keeps_up(self) -> bool:
        """Whether every frame was labelled before the next one came."""
        return self.dropped == 0 and self.missed == 0


@dataclass(slots=True)
class _Mailbox:
    """Holds the newest frame alone."""

    ready: threading.Condition = dataclasses.field(default_factory=threading.Condition)
    frame: tuple[int, float] | None = None
    is_closed: bool = False
    dropped: int = 0

    def put(self, index: int, arrived: float) -> None:
        with self.ready:
            self.dropped += self.frame is not None
            self.frame = index, arrived
            self.ready.notify()

    def take(self) -> tuple[int, float] | None:
        """Wait for a frame; ``None`` when no more will come."""
        with self.ready:
            while self.frame is None and not self.is_closed:
                self.ready.wait()
            frame, self.frame = self.frame, None
            return frame

    def close(self) -> None:
        with self.ready:
            self.is_closed = True
            self.ready.notify()


def measure_camera(
    identity: Identity,
    segment: Callable[[np.ndarray], object],
    frames: FrameSet,
    camera_fps: float,
    *,
    seconds: float = 10.0,
) -> CameraResult:
    """Offer frames at a fixed pace while one thread labels what is newest.

    Args:
        identity: What labels.
        segment: Takes a frame RGB uint8 (H, W, 3), and returns when its class map is there.
        frames: What the camera sees, round and round.
        camera_fps: Its pace, above 0.
        seconds: How long.
    """
    pictures = cycle(frames.frames)
    for index in range(_WARMUP_CALLS):
        segment(pictures(index))
    box, ages, finished = _Mailbox(), list[float](), list[float]()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            while (frame := box.take()) is not None:
                index, arrived = frame
                segment(pictures(index))
                finished.append(time.perf_counter())
                ages.append((finished[-1] - arrived) * 1e3)
        except BaseException as error:  # raised to the caller below
            problems.append(error)

    worker = threading.Thread(target=work)
    offered = max(1, round(seconds * camera_fps))
    started = time.perf_counter()
    worker.start()
    try:
        for index in range(offered):
            # By the clock from the start, not from the last frame: a late wake-up does not shift the rest.
            due = started + index / camera_fps
            time.sleep(max(0.0, due - time.perf_counter()))
            if problems:
                break
            box.put(index, due)
    finally:
        box.close()
        worker.join()
    if problems:
        raise problems[0]
    return CameraResult(
        **dataclasses.asdict(identity),
        camera_fps=camera_fps,
        seconds=finished[-1] - started,
        offered=offered,
        done=len(ages),
        dropped=box.dropped,
        missed=sum(age > 1e3 / camera_fps for age in ages),
        age=summarize(ages),
    )
