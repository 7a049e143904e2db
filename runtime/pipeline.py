"""Run stages concurrently, one thread each, with bounded queues: order is kept and memory stays bounded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

_END = object()
_POLL_SECONDS = 0.1


class Pipeline:
    """Passes the items of a source through functions in order, each function in its own thread.

    The caller's thread takes the results. An exception of the source or of a stage is raised to the caller
    after the results of the items before it, and ends all threads. Leaving the iteration early, also by
    Ctrl-C, ends them too. An iterator that is neither exhausted nor closed keeps its threads, and so the
    process, alive.
    """

    def __init__(
        self,
        source: Iterable[Any],
        *stages: Callable[[Any], Any],
        queue_size: int = 4,
        while_stopping: Callable[[], object] = lambda: None,
    ) -> None:
        """Define the pipeline; threads start with the iteration.

        Args:
            source: Iterated in its own thread.
            *stages: Functions from item to item; ``stages[i]`` feeds ``stages[i + 1]``.
            queue_size: Items that may wait before each stage.
            while_stopping: Called until all threads have ended, to free what they may wait for.
        """
        self._source, self._stages = source, stages
        self._queue_size, self._while_stopping = queue_size, while_stopping

    def __iter__(self) -> Generator[Any]:
        stopped = threading.Event()
        queues = [queue.Queue[Any](self._queue_size) for _ in range(len(self._stages) + 1)]

        def items(feed: queue.Queue[Any]) -> Iterator[Any]:
            while not stopped.is_set():
                try:
                    item = feed.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    continue
                if item is _END:
                    return
                if isinstance(item, _Failure):
                    raise item.error
                yield item

        def results(stage: Callable[[Any], Any], feed: queue.Queue[Any]) -> Iterator[Any]:
            for item in items(feed):
                yield stage(item)

        def put(target: queue.Queue[Any], item: Any) -> None:
            while not stopped.is_set():
                try:
                    return target.put(item, timeout=_POLL_SECONDS)
                except queue.Full:
                    continue

        def work(produced: Iterator[Any], target: queue.Queue[Any]) -> None:
            try:
                for item in produced:
                    put(target, item)
                    if stopped.is_set():
                        return
                put(target, _END)
            except BaseException as error:  # raised in the caller's thread
                put(target, _Failure(error))

        producers = [iter(self._source), *map(results, self._stages, queues)]
        # Not daemons: a thread that is inside a library while Python exits would abort the process.
        threads = [
            threading.Thread(target=work, args=pair) for pair in zip(producers, queues, strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            yield from items(queues[-1])
        finally:
            stopped.set()
            for thread in threads:
                while thread.is_alive():  # Ctrl-C may come before all threads have started
                    self._while_stopping()
                    thread.join(_POLL_SECONDS)
            self._while_stopping()


class _Failure(NamedTuple):
    """An exception on its way to the caller, in the place of an item."""

    error: BaseException
