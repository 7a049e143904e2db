"""Run stages side by side, one thread each, with bounded queues between them: order kept, memory flat."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_END = object()
_POLL_SECONDS = 0.1


class Pipeline:
    """Items of a source pass through functions in order, each function in a thread of its own.

    The caller's thread takes the results. The first exception of the source or of any stage stops all of them
    and is raised to the caller; leaving the iteration early, Ctrl-C included, stops them too. An iterator
    that is kept but neither used up nor closed keeps its threads, and so the process, alive.
    """

    def __init__(
        self, source: Iterable[Any], *stages: Callable[[Any], Any], queue_size: int = 4
    ) -> None:
        """Plan the pipeline; threads start with the iteration.

        Args:
            source: Iterated in a thread of its own.
            *stages: Item to item; ``stages[i]`` feeds ``stages[i + 1]``.
            queue_size: Items that may wait before each stage.
        """
        self._source = source
        self._stages = stages
        self._queue_size = queue_size

    def __iter__(self) -> Iterator[Any]:
        queues: list[queue.Queue[Any]] = [
            queue.Queue(self._queue_size) for _ in range(len(self._stages) + 1)
        ]
        run = _Run()
        iterators = [iter(self._source)]
        for stage, feed in zip(self._stages, queues, strict=False):
            iterators.append(run.results(stage, feed))
        # No daemons: a thread that is still in a library while Python ends would abort the process.
        threads = [
            threading.Thread(target=run.work, args=(items, target))
            for items, target in zip(iterators, queues, strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            yield from run.items(queues[-1])
        finally:
            run.stopped.set()
            for thread in threads:
                if thread.is_alive():  # Ctrl-C may come before all of them run
                    thread.join()
        if run.error is not None:
            raise run.error


class _Run:
    """One iteration's shared state: whether to stop, and why."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def work(self, items: Iterator[Any], target: queue.Queue[Any]) -> None:
        """Move items into a queue until they end, or anything fails."""
        try:
            for item in items:
                if not self._put(target, item):
                    return
            self._put(target, _END)
        except BaseException as error:  # handed to the caller's thread, which raises it
            with self._lock:
                self.error = self.error or error
            self.stopped.set()

    def items(self, feed: queue.Queue[Any]) -> Iterator[Any]:
        """Take items from a queue until they end or the run stops."""
        while not self.stopped.is_set():
            try:
                item = feed.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if item is _END:
                return
            yield item

    def results(self, stage: Callable[[Any], Any], feed: queue.Queue[Any]) -> Iterator[Any]:
        """Pass a queue's items through a function."""
        for item in self.items(feed):
            yield stage(item)

    def _put(self, target: queue.Queue[Any], item: Any) -> bool:
        while not self.stopped.is_set():
            try:
                target.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
