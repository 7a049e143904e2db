"""One process per pipeline, so that pipelines taking turns share neither threads nor memory."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np

from benchmarks.baselines.pipelines import PipelineSetup, pipeline_makers
from benchmarks.errors import BenchmarkError
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
        """Start the process, make the pipeline ``name`` in it and warm it up.

        ``frames`` are timed: RGB uint8 (H, W, 3), of size ``setup.size_hw``.

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

    def time_block(self) -> list[float]:
        """Time at least two calls, and calls for 0.2 s, in ms, after one untimed call."""
        return self._run(_Server.time_block)

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
        self._size_hw, self._frames = setup.size_hw, itertools.cycle(frames)
        make = pipeline_makers()[name]
        self._pipeline_at = cache(lambda size_hw: make(replace(setup, size_hw=size_hw)))

    def make(self) -> str | None:
        """Make and warm up the pipeline; returns the hash of its file, ``None`` for torch."""
        _, path = self._pipeline_at(self._size_hw)
        for _ in range(3):
            self._call_ms()
        return None if path is None else sha256_of(path)

    def time_block(self) -> list[float]:
        self._call_ms()
        times: list[float] = []
        while len(times) < 2 or sum(times) < 200:
            times.append(self._call_ms())
        return times

    def segment(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        pipeline, _ = self._pipeline_at(frames[0].shape[:2])
        return list(map(pipeline, frames))

    def _call_ms(self) -> float:
        pipeline, _ = self._pipeline_at(self._size_hw)
        frame, started = next(self._frames), time.perf_counter_ns()
        pipeline(frame)
        return (time.perf_counter_ns() - started) / 1e6


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
