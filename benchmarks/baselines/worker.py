"""One process a route: no library's threads or memory can slow another's down while routes take turns."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.baselines.pipelines import Route, pipeline_makers
from benchmarks.errors import BenchmarkError
from benchmarks.timing.latency import END_TO_END, TimedBlocks, Workload, cycle
from runtime.files import sha256_of


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineRequest:
    """What a worker is to make."""

    name: str
    """Key of ``pipeline_makers``."""
    weights: str
    """Checkpoint, or the name of shipped weights."""
    folder: Path
    """Where artefacts go."""
    calibration: Path | None
    """Frames for INT8 ranges."""
    frames: tuple[np.ndarray, ...]
    """What is timed, RGB uint8 (H, W, 3), all of one size."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size of the frames."""
        height, width = self.frames[0].shape[:2]
        return height, width


class PipelineWorker:
    """A route in a process of its own."""

    def __init__(self, request: PipelineRequest) -> None:
        """Start the process, make the route in it, and run it once.

        Raises:
            BenchmarkError: The route cannot be had here, with its reason.
        """
        self.name = request.name
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["benchmarks.baselines.pipelines"]
        )  # torch and the others once, not for each
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(request, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.sha256: str | None = self._receive()
        except BenchmarkError:
            self.close()
            raise

    def time_block(self, seconds: float, min_calls: int) -> list[float]:
        """Time one block of calls, milliseconds; the first call is not timed."""
        return list(self._ask("time_block", seconds, min_calls))

    def segment(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Label frames of one size, which may be another than what is timed."""
        return list(self._ask("segment", list(frames)))

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> PipelineWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            is_right, answer = self._connection.recv()
        except EOFError:
            self._process.join(timeout=10)
            raise BenchmarkError(
                f"{self.name}: its process ended with {self._process.exitcode}"
            ) from None
        if not is_right:
            raise BenchmarkError(f"{self.name}: {answer}")
        return answer


class _Server:
    """The worker's side: the route for the timed size, and for others when they come."""

    def __init__(self, request: PipelineRequest, stack: ExitStack) -> None:
        self._request, self._stack = request, stack
        self._routes: dict[tuple[int, int], Route] = {}
        route, path = self._make(request.size_hw)
        self.sha256 = None if path is None else sha256_of(path)
        pictures = cycle(request.frames)
        self._blocks = TimedBlocks(
            Workload(name=request.name, scope=END_TO_END, call=lambda index: route(pictures(index)))
        )

    def time_block(self, seconds: float, min_calls: int) -> list[float]:
        return self._blocks.take(seconds, min_calls)

    def segment(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        height, width = frames[0].shape[:2]
        if (height, width) not in self._routes:
            self._make((height, width))
        return [self._routes[height, width](frame) for frame in frames]

    def _make(self, size_hw: tuple[int, int]) -> tuple[Route, Path | None]:
        request = self._request
        makers = pipeline_makers(
            request.weights,
            size_hw,
            request.folder,
            self._stack,
            calibration=request.calibration,
        )
        route, path = makers[request.name]()
        route(np.zeros((*size_hw, 3), np.uint8))
        self._routes[size_hw] = route
        return route, path


def _serve(request: PipelineRequest, connection: Connection) -> None:
    """Make the route, then answer until the other side hangs up."""
    with ExitStack() as stack:
        try:
            server = _Server(request, stack)
            connection.send((True, server.sha256))
            while True:
                method, arguments = connection.recv()
                connection.send((True, getattr(server, method)(*arguments)))
        except EOFError:
            return
        except (
            Exception
        ) as error:  # other people's software may fail in any way: the other side tells it
            reason = next(iter(str(error).strip().splitlines()), "")
            connection.send((False, f"{type(error).__name__}: {reason[:200]}"))
