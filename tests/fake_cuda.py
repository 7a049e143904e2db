"""A fake CUDA device: streams run late, in any order that the events allow, and every rule is checked.

Work is queued and runs when the host waits. A seeded scheduler picks any stream whose next item is ready, so
a missing event shows up as a wrong result sooner or later. Use after free, a leak, and a read and a write
that no event orders are errors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from runtime.errors import CudaError


@dataclass
class Work:
    """One item of a stream."""

    run: Callable[[], None]
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    waits_for: tuple[object, ...] = ()
    marks: object | None = None
    after: set[int] = field(default_factory=set)
    number: int = -1


class FakeDevice:
    """See ``runtime.cuda.device.CudaDevice``."""

    library = "fake"
    index = 0
    name = "NVIDIA Fake 3060"
    pci_bus_id = "0000:01:00.0"

    def __init__(self, *, sm=(8, 6), seed: int = 0, memory: int = 1 << 30) -> None:
        self.sm = sm
        self.random = random.Random(seed)
        self.total = self.free_memory = memory
        self.next_address = 0x1000
        self.next_handle = 100
        self.buffers: dict[int, FakeMemory] = {}
        self.streams: dict[int, FakeStream] = {}
        self.alive: set[object] = set()
        self.depth = 0
        self.closed = False
        self.fail_allocation_at: int | None = None
        self.allocations = 0
        self.can_capture = True
        self.capture_fails: set[int] = set()
        self.capturing: list[Work] | None = None
        self.lost_after: int | None = None
        self.synchronised = 0
        self.captures = self.launches = 0
        self.history: list[Work] = []
        self.close_calls = 0
        self.users: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        return not self.closed

    def before_close(self, close: Callable[[], None]) -> None:
        self.users.append(close)

    @contextmanager
    def current(self) -> Iterator[None]:
        assert not self.closed, "the device is closed"
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def new_stream(self):
        return FakeStream(self)

    def new_event(self, *, timing: bool = False, blocking: bool = False):
        return FakeEvent(self, timing)

    def pinned_buffer(self, num_bytes: int):
        self._allocate()
        return FakePinned(self, num_bytes)

    def device_buffer(self, num_bytes: int):
        self._allocate()
        if num_bytes > self.free_memory:
            raise CudaError(
                f"GPU memory is full: {num_bytes / 1e6:.1f} MB requested", hint="free some"
            )
        return FakeMemory(self, num_bytes)

    def _allocate(self) -> None:
        assert self.depth, "no context is current"
        assert self.capturing is None, "allocation while capturing"
        self.allocations += 1
        if self.allocations - 1 == self.fail_allocation_at:
            raise CudaError(
                "GPU memory is full: 1.0 MB requested, 0.1 of 8 MB free", hint="free some"
            )

    def copy_to_device(self, target, source, num_bytes, stream) -> None:
        def run() -> None:
            target.bytes[:num_bytes] = source.checked()[:num_bytes]

        stream.push(Work(run, reads=(source.key,), writes=(target.checked().address,)))

    def copy_to_host(self, target, source, num_bytes, stream) -> None:
        def run() -> None:
            target.checked()[:num_bytes] = source.bytes[:num_bytes]

        stream.push(Work(run, reads=(source.checked().address,), writes=(target.key,)))

    def launch(self, run: Callable[[], None], reads, writes, handle: int) -> None:
        """Enqueue a kernel, as an engine does."""
        for address in (*reads, *writes):
            assert address in self.buffers, f"address {address:#x} is not device memory"
        self.streams[handle].push(Work(run, reads=tuple(reads), writes=tuple(writes)))

    def at(self, address: int) -> np.ndarray:
        """Get device memory as bytes."""
        return self.buffers[address].bytes

    def capture(self, stream, work):
        if not self.can_capture:
            raise CudaError(
                "cuStreamBeginCapture failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, no", hint=None
            )
        assert self.capturing is None
        self.captures += 1
        self.capturing = []
        try:
            work()
            items = self.capturing
            if self.captures in self.capture_fails:
                raise CudaError("cuStreamEndCapture failed: CAPTURE_INVALIDATED", hint="none")
        finally:
            self.capturing = None
        return FakeGraph(self, items)

    def memory_bytes(self) -> tuple[int, int]:
        return self.free_memory, self.total

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Run queued work in any allowed order until the condition holds."""
        if self.lost_after is not None and self.synchronised >= self.lost_after:
            raise CudaError(
                "cuEventSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS, lost", hint="restart it"
            )
        self.synchronised += 1
        while not is_done():
            waiting = [stream for stream in self.streams.values() if stream.queue]
            ready = [s for s in waiting if all(mark.reached for mark in s.queue[0].waits_for)]
            assert ready, "deadlock: nothing is ready"
            self.random.choice(ready).step()

    def check_races(self) -> None:
        """Check that two items that touch the same memory, one writing, are ordered by stream or event."""
        for later in self.history:
            for earlier in self.history:
                if earlier.number >= later.number or earlier.number in later.after:
                    continue
                touched = {*later.reads, *later.writes}
                clash = set(earlier.writes) & touched or set(earlier.reads) & set(later.writes)
                assert not clash, f"{earlier.number} and {later.number} race on {clash}"

    def close(self) -> None:
        self.close_calls += 1
        if not self.closed:
            for close in self.users:
                close()
            assert not self.alive, f"leaked: {self.alive}"
            self.closed = True


class _Freed:
    def __init__(self, device: FakeDevice) -> None:
        self.device, self.is_free = device, False
        device.alive.add(self)

    def free(self) -> None:
        with self.device.current():
            self.release()

    def release(self) -> None:
        if not self.is_free:
            assert self.device.depth, "no context is current"
            self.is_free = True
            self.device.alive.discard(self)
            self.gone()

    def gone(self) -> None:
        pass

    def checked(self):
        assert not self.is_free, "use after free"
        return self


class FakeMemory(_Freed):
    def __init__(self, device, num_bytes) -> None:
        super().__init__(device)
        self.address, self.num_bytes = device.next_address, num_bytes
        device.next_address += num_bytes + 64
        device.free_memory -= num_bytes
        self.bytes = np.full(num_bytes, 0xCD, np.uint8)
        device.buffers[self.address] = self

    def gone(self) -> None:
        self.device.free_memory += self.num_bytes
        del self.device.buffers[self.address]


class FakePinned(_Freed):
    def __init__(self, device, num_bytes) -> None:
        super().__init__(device)
        self.array = np.full(num_bytes, 0xEF, np.uint8)
        self.key = -device.next_handle
        device.next_handle += 1

    def checked(self):
        assert not self.is_free, "use after free"
        return self.array


class FakeStream(_Freed):
    def __init__(self, device) -> None:
        super().__init__(device)
        self.handle = device.next_handle
        device.next_handle += 1
        device.streams[self.handle] = self
        self.queue: list[Work] = []
        self.before: set[int] = set()

    def push(self, item: Work) -> None:
        self.checked()
        if self.device.capturing is not None:
            self.device.capturing.append(item)
        else:
            self.queue.append(item)

    def step(self) -> None:
        item = self.queue.pop(0)
        for event in item.waits_for:
            self.before |= event.before
        item.number, item.after = len(self.device.history), set(self.before)
        self.device.history.append(item)
        item.run()
        self.before.add(item.number)
        if item.marks is not None:
            item.marks.reach(self.before)

    def wait(self, event) -> None:
        self.push(Work(lambda: None, waits_for=(event.checked().mark(),)))

    def synchronize(self) -> None:
        assert self.device.capturing is None, "synchronize while capturing"
        self.device.run_until(lambda: not self.queue)
        self.device.host = set(self.before)

    def gone(self) -> None:
        assert not self.queue, "destroyed with work in it"


class _Mark:
    def __init__(self) -> None:
        self.reached, self.before = False, set()

    def reach(self, before: set[int]) -> None:
        self.reached, self.before = True, set(before)


class FakeEvent(_Freed):
    def __init__(self, device, timing) -> None:
        super().__init__(device)
        self.timing = timing
        self.last = _Mark()
        self.last.reach(set())

    def mark(self) -> _Mark:
        return self.last

    def record(self, stream) -> None:
        self.checked()
        self.last = _Mark()
        stream.push(Work(lambda: None, marks=self.last))

    def synchronize(self) -> None:
        mark = self.last
        self.device.run_until(lambda: mark.reached)
        # Work that the host enqueues from now on runs after the work that it has waited for.
        for stream in self.device.streams.values():
            stream.before |= mark.before

    def ms_since(self, start) -> float:
        assert self.timing
        assert start.timing
        return float(len(self.last.before - start.last.before))


class FakeGraph(_Freed):
    def __init__(self, device, items) -> None:
        super().__init__(device)
        self.items = items

    def launch(self, stream) -> None:
        self.checked()
        self.device.launches += 1
        for item in self.items:
            stream.push(Work(item.run, item.reads, item.writes))
