"""Progress of an engine build, as TensorRT's progress monitor reports it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from runtime.tensorrt_api import TensorRt


@dataclass(slots=True)
class _Phase:
    parent: str | None
    num_steps: int
    done: int = 0


class BuildProgress:
    """Phase and share of a build: TensorRT's threads report it, another one shows it or cancels the build."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._share = 0.0
        self.is_cancelled = False
        """True after ``cancel``."""

    @property
    def phase(self) -> str:
        """Name of the innermost phase, such as ``Timing tactics``; empty before the first report."""
        with self._lock:
            return next(reversed(self._phases), "")

    @property
    def share(self) -> float:
        """Completed share of the steps, 0 to 1; it never falls. Steps differ in length."""
        with self._lock:
            roots = (name for name, phase in self._phases.items() if phase.parent is None)
            self._share = max(self._share, *map(self._share_of, roots), 0.0)
            return self._share

    def cancel(self) -> None:
        """Let the build fail at its next step."""
        self.is_cancelled = True

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """Enter a phase inside ``parent``."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, num_steps))

    def step(self, name: str, index: int) -> bool:
        """Complete the step ``index``, from 0, of a phase; False asks TensorRT to give up."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
        return not self.is_cancelled

    def finish(self, name: str) -> None:
        """Leave a phase."""
        with self._lock:
            self._phases.pop(name, None)

    def _share_of(self, name: str) -> float:
        phase = self._phases[name]
        children = (child for child, other in self._phases.items() if other.parent == name)
        inner = max(map(self._share_of, children), default=0.0)
        return min(1.0, (phase.done + inner) / phase.num_steps)


def monitor_of(trt: TensorRt, progress: BuildProgress) -> Any | None:
    """Make the monitor that reports to ``progress``; ``None`` if this TensorRT (8.6) has none."""
    if not trt.has("IProgressMonitor"):
        return None

    base: Any = trt.module.IProgressMonitor  # a class known at run time

    class Monitor(base):  # type: ignore[misc]
        def __init__(monitor) -> None:
            base.__init__(monitor)

        def phase_start(monitor, name: str, parent: str | None, num_steps: int) -> None:
            progress.start(name, parent, num_steps)

        def step_complete(monitor, name: str, step: int) -> bool:
            return progress.step(name, step)

        def phase_finish(monitor, name: str) -> None:
            progress.finish(name)

    return Monitor()
