"""Run stages concurrently, one thread each, with bounded queues: order is kept and memory stays bounded."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

_END = object()
_POLL_SECONDS = 0.1


class Pipeline(Iterator[Any]):
    """Passes the items of a source through functions in order, each function in its own thread.

    Iterate it once, in one thread. An exception of the source or of a stage is raised after the results of
    the items before it. The threads start with the first ``next``, and have ended after the last result, an
    exception, or Ctrl-C in ``next``. Use ``contextlib.closing`` if the iteration may be left early:
    otherwise the threads keep the process alive.
    """

    def __init__(
        self,
        source: Iterable[Any],
        *stages: Callable[[Any], Any],
        queue_size: int = 4,
        while_stopping: Callable[[], object] = lambda: None,
    ) -> None:
        """Define the pipeline.

        Args:
            source: Iterated in its own thread.
            *stages: Functions from item to item; ``stages[i]`` feeds ``stages[i + 1]``.
            queue_size: Items that may wait before each stage.
            while_stopping: Called until all threads have ended, to free what they may wait for.
        """
        self._source, self._stages, self._while_stopping = source, stages, while_stopping
        self._queues = [queue.Queue[Any](queue_size) for _ in range(len(stages) + 1)]
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()

    def __next__(self) -> Any:
        return self.next_within(None)

    def next_within(self, seconds: float | None) -> Any:
        """Get the next result, or raise ``queue.Empty`` if there is none after a number of seconds."""
        try:
            if not self._threads and not self._stopped.is_set():
                self._start()
            return self._take(self._queues[-1], seconds)
        except queue.Empty:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all threads and wait for them; a second call does nothing."""
        self._stopped.set()
        threads, self._threads = self._threads, []
        for thread in threads:
            while thread.is_alive():  # Ctrl-C may come before all threads have started
                self._while_stopping()
                thread.join(_POLL_SECONDS)
        self._while_stopping()

    def _start(self) -> None:
        producers = [iter(self._source), *map(self._results, self._stages, self._queues)]
        # Not daemons: a thread that is inside a library while Python exits would abort the process.
        self._threads = [
            threading.Thread(target=self._work, args=pair)
            for pair in zip(producers, self._queues, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _take(self, feed: queue.Queue[Any], seconds: float | None) -> Any:
        """Get an item of a queue; raise ``StopIteration`` at its end, and the error of an earlier stage."""
        ends = None if seconds is None else time.monotonic() + seconds
        while not self._stopped.is_set():
            left = _POLL_SECONDS if ends is None else max(0.0, ends - time.monotonic())
            try:
                item = feed.get(timeout=min(left, _POLL_SECONDS))
            except queue.Empty:
                if ends is not None and time.monotonic() >= ends:
                    raise
                continue
            if isinstance(item, _Failure):
                raise item.error
            if item is not _END:
                return item
            break
        raise StopIteration

    def _results(self, stage: Callable[[Any], Any], feed: queue.Queue[Any]) -> Iterator[Any]:
        while True:
            try:
                item = self._take(feed, None)
            except StopIteration:
                return
            yield stage(item)

    def _put(self, target: queue.Queue[Any], item: Any) -> None:
        while not self._stopped.is_set():
            try:
                return target.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def _work(self, produced: Iterator[Any], target: queue.Queue[Any]) -> None:
        try:
            for item in produced:
                self._put(target, item)
                if self._stopped.is_set():
                    return
            self._put(target, _END)
        except BaseException as error:  # raised in the caller's thread
            self._put(target, _Failure(error))


class _Failure(NamedTuple):
    """An exception on its way to the caller, in the place of an item."""

    error: BaseException
