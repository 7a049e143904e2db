"""A simulated camera: frames arrive at a fixed rate, and a slow model drops all but the newest."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.frames import FrameSet
from benchmarks.models import ModelIdentity, OpenModel
from benchmarks.timing.statistics import Summary, summarize


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
    def name(self) -> str:
        """Name for tables."""
        return self.model.name

    @property
    def keeps_up(self) -> bool:
        """True if every frame was labelled within one frame interval."""
        return self.dropped == 0 and self.missed == 0


def measure_camera(
    model: OpenModel, frames: FrameSet, camera_fps: float, seconds: float
) -> CameraResult:
    """Label the newest frame of a camera again and again; frames that arrive meanwhile are dropped.

    The camera repeats ``frames`` at ``camera_fps`` frames per second for a number of seconds.
    """
    images = frames.frames

    def segment(index: int) -> None:
        model.segmenter.segment(images[index % len(images)])

    for index in range(5):  # warm-up
        segment(index)
    num_offered = max(1, round(seconds * camera_fps))
    started, index, ages = time.perf_counter(), -1, list[float]()
    while index < num_offered - 1:
        index += 1
        time.sleep(max(0.0, started + index / camera_fps - time.perf_counter()))
        newest = int((time.perf_counter() - started) * camera_fps)
        index = min(max(index, newest), num_offered - 1)
        segment(index)
        finished = time.perf_counter() - started
        ages.append((finished - index / camera_fps) * 1e3)
    return CameraResult(
        model=model.identity,
        camera_fps=camera_fps,
        seconds=finished,
        offered=num_offered,
        done=len(ages),
        dropped=num_offered - len(ages),
        missed=sum(age > 1e3 / camera_fps for age in ages),
        scopes={"age": summarize(ages)},
    )
