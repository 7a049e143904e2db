"""Find and load an installed TensorRT or TensorRT-RTX, query its features, and keep its log messages.

Features are detected by the members of the module, not by version strings.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runtime.errors import BackendUnavailable, InvalidInput

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
# Kind -> import names, and the extra that installs it. The wheels of 8.6 may lack the module ``tensorrt``;
# ``tensorrt_bindings`` has the same contents.
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    TENSORRT: (("tensorrt", "tensorrt_bindings"), "gpu"),
    TENSORRT_RTX: (("tensorrt_rtx",), "rtx"),
}
_KEPT_MESSAGES = 200


@dataclass(frozen=True, slots=True)
class TensorRt:
    """A loaded TensorRT."""

    kind: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    module: Any
    """The Python module."""
    log: MessageLog
    """The only logger of this module in the process."""

    @property
    def version(self) -> str:
        """The version, for messages and engine records; features are detected with ``has``."""
        return str(self.module.__version__)

    def has(self, dotted: str) -> bool:
        """Check for a member of the module, such as ``BuilderFlag.FP16``."""
        try:
            operator.attrgetter(dotted)(self.module)
        except AttributeError:
            return False
        return True

    @property
    def types_by_flags(self) -> bool:
        """True if precisions are set by builder flags (8.6), because networks are not strongly typed."""
        return not self.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED")

    @property
    def cross_compiles(self) -> bool:
        """True if it can build for other GPUs than the installed one, and without a GPU."""
        return self.has("ComputeCapability") and self.has("IBuilderConfig.set_compute_capability")

    def create(self, name: str) -> Any:
        """Create a ``Builder`` or a ``Runtime``.

        Raises:
            BackendUnavailable: No driver or no GPU.
        """
        try:
            return getattr(self.module, name)(self.log.logger)
        except TypeError as error:  # pybind11's "factory function returned nullptr"
            raise BackendUnavailable(
                f"{self.kind} {self.version} cannot create a {name}: no NVIDIA driver or no GPU "
                f"({self.log.last_error() or error})",
                hint="esnet-doctor shows what is missing",
            ) from error


class MessageLog:
    """Keeps TensorRT's last messages, or all of them while a build is watched."""

    def __init__(self, module: Any) -> None:
        """Create the logger; it must live as long as the module, or TensorRT-RTX crashes."""
        self._lines: deque[tuple[int, str]] | list[tuple[int, str]] = deque(maxlen=_KEPT_MESSAGES)
        self._error = int(module.ILogger.Severity.ERROR)

        class Logger(module.ILogger):  # type: ignore[misc]  # a class known at run time
            def __init__(logger) -> None:
                module.ILogger.__init__(logger)

            def log(logger, severity: Any, message: str) -> None:
                self._lines.append((int(severity), str(message)))

        self.logger = Logger()

    def last_error(self) -> str | None:
        """Get the last error in one line; ``None`` if there was none."""
        errors = [text for severity, text in self._lines if severity <= self._error]
        return " ".join(errors[-1].split())[:400] if errors else None

    @contextmanager
    def watched(self) -> Iterator[list[tuple[int, str]]]:
        """Keep every message of a block; earlier messages are dropped."""
        lines = self._lines = []
        try:
            yield lines
        finally:
            self._lines = deque(lines, maxlen=_KEPT_MESSAGES)


def load_tensorrt(kind: str = "auto") -> TensorRt:
    """Load a TensorRT.

    Args:
        kind: Key of ``KINDS``, or ``auto`` for the first that is installed.

    Raises:
        BackendUnavailable: None is installed, or it does not load; the message has the reason.
        InvalidInput: Unknown kind.
    """
    if kind not in ("auto", *KINDS):
        raise InvalidInput(
            f"unknown TensorRT {kind!r}", hint=f"choose from auto, {', '.join(KINDS)}"
        )
    kinds = list(KINDS) if kind == "auto" else [kind]
    failures = []
    for candidate in kinds:
        for name in filter(importlib.util.find_spec, KINDS[candidate][0]):
            try:
                return _wrap(candidate, importlib.import_module(name))
            except (ImportError, OSError) as error:
                failures.append(f"{name} is installed but does not load: {error}")
    wanted = "no TensorRT" if kind == "auto" else f"no {kind}"
    if failures:
        raise BackendUnavailable(
            f"{wanted} can be used: {failures[0]}", hint="esnet-doctor shows more"
        )
    installs = [f"pip install 'esnet-deploy[{KINDS[candidate][1]}]'" for candidate in kinds]
    pascal = "; GTX 10xx and older: esnet-doctor prints the command" if TENSORRT in kinds else ""
    raise BackendUnavailable(f"{wanted} is installed", hint="; or ".join(installs) + pascal)


@functools.cache
def _wrap(kind: str, module: Any) -> TensorRt:
    """Make the only ``TensorRt`` of a module, because a module takes only one logger."""
    return TensorRt(kind, module, MessageLog(module))
