"""One process per pipeline, so that pipelines taking turns share neither threads nor memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from benchmarks.baselines.pipelines import Pipeline, PipelineSetup, pipeline_makers
from benchmarks.errors import BenchmarkError
from benchmarks.timing.latency import END_TO_END, TimedBlocks, Workload, cycle
from runtime.files import sha256_of

T = TypeVar("T")


class PipelineWorker(ProcessPoolExecutor):
    """A pipeline in its own process, which ends with the ``with`` block, and its measurements."""

    sha256: str | None
    """Hash of the file that runs; ``None`` for torch, which runs the checkpoint."""
    labels: list[np.ndarray]
    """Labels of the timed frames, uint8 (H, W)."""
    blocks_ms: list[list[float]]
    """Times of all calls, ms, by round."""
    miou: float | None = None
    """mIoU, 0 to 1; ``None`` if not measured."""

    def __init__(self, name: str, setup: PipelineSetup, frames: Sequence[np.ndarray]) -> None:
        """Start the process, make the pipeline in it and warm it up.

        Args:
            name: Key of ``pipeline_makers``.
            setup: Inputs of the pipeline.
            frames: Frames to time, RGB uint8 (H, W, 3), of size ``setup.size_hw``.

        Raises:
            BenchmarkError: The pipeline cannot be made here; the message gives the reason.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.baselines.pipelines"])  # import torch once
        super().__init__(1, context, _start, (name, setup, tuple(frames)))
        self.name = name
        self.labels, self.blocks_ms = [], []
        others = set(multiprocessing.active_children())
        self.submit(int)  # starts the process
        (self._process,) = set(multiprocessing.active_children()) - others
        try:
            self.sha256 = self._run(_Server.make)
        except BenchmarkError:
            self.shutdown()
            raise

    def time_block(self, seconds: float, min_calls: int) -> list[float]:
        """Time calls in ms for at least ``seconds`` and ``min_calls``, after one untimed call."""
        return self._run(_Server.time_block, seconds, min_calls)

    def segment(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Label frames (H, W, 3) of one size, any multiple of 8; returns uint8 labels (H, W)."""
        return self._run(_Server.segment, frames)

    def _run(self, method: Callable[..., T], *arguments: object) -> T:
        try:
            return self.submit(_call, method, *arguments).result()
        except BrokenProcessPool:
            self.shutdown()  # sets the exit code
            code = self._process.exitcode
            raise BenchmarkError(f"{self.name}: its process ended with exit code {code}") from None
        except BenchmarkError as error:
            raise BenchmarkError(f"{self.name}: {error}") from None


class _Server:
    """State of the worker process: the pipeline at each frame size."""

    def __init__(self, name: str, setup: PipelineSetup, frames: Sequence[np.ndarray]) -> None:
        self._name, self._setup, self._frame = name, setup, cycle(frames)
        self._pipelines: dict[tuple[int, int], Pipeline] = {}

    def make(self) -> str | None:
        """Make and warm up the pipeline; returns the hash of its file, ``None`` for torch."""
        pipeline, path = pipeline_makers()[self._name](self._setup)
        self._pipelines[self._setup.size_hw] = pipeline
        workload = Workload(
            name=self._name, scope=END_TO_END, call=lambda index: pipeline(self._frame(index))
        )
        self._blocks = TimedBlocks(workload)
        return None if path is None else sha256_of(path)

    def time_block(self, seconds: float, min_calls: int) -> list[float]:
        return self._blocks.take(seconds, min_calls)

    def segment(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        height, width, _ = frames[0].shape
        size_hw = height, width
        if size_hw not in self._pipelines:
            setup = replace(self._setup, size_hw=size_hw)
            self._pipelines[size_hw], _ = pipeline_makers()[self._name](setup)
        return [self._pipelines[size_hw](frame) for frame in frames]


_server: _Server  # set in the worker process


def _start(*arguments: Any) -> None:
    # The first task makes the pipeline: the parent cannot see an error that an initializer raises.
    global _server
    _server = _Server(*arguments)


def _call(method: Callable[..., T], *arguments: object) -> T:
    """Call a method of the server; turn any error into a ``BenchmarkError``, which can be pickled."""
    try:
        return method(_server, *arguments)
    except Exception as error:  # errors of other libraries have no common base class
        reason = next(iter(str(error).strip().splitlines()), "")
        raise BenchmarkError(f"{type(error).__name__}: {reason[:200]}") from None
