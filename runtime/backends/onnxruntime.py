"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.backends.base import Backend
from runtime.errors import BackendUnavailable, ModelFileError
from runtime.machine.machine import cpu_name
from runtime.slots import HostSlotQueue, SlotQueue

_ERRORS_ONLY = 3  # hides warnings about unused initializers


class OnnxRuntimeBackend(Backend):
    """Runs an ONNX file with ONNX Runtime's CPU provider.

    Batches in flight run in a small pool of threads, which share the session's threads.
    """

    name = "onnxruntime"
    num_slots = 3

    def _open(self, path: Path, precision: str | None, threads: int | None) -> None:
        if not hasattr(ort, "InferenceSession"):
            raise BackendUnavailable(
                "onnxruntime is broken: it and onnxruntime-gpu were both installed, and one was removed",
                hint="pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime",
            )
        # The CPU provider computes an fp16 graph in fp32, through casts.
        self.precision = "int8" if self.card.precision == "int8" else "fp32"
        self._require_precision(precision, (self.precision,), on="the CPU")
        self.device = cpu_name()
        self._session = open_session(path, ["CPUExecutionProvider"], threads=threads)
        edges = (*self._session.get_inputs(), *self._session.get_outputs())
        self._check_graph(
            path,
            {e.name: tuple(s if isinstance(s, int) else None for s in e.shape) for e in edges},
        )
        self._output_names = [spec.name for spec in self.outputs]

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        with self._in_turn():
            return self._run(batch)

    def _run(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return tuple(self._session.run(self._output_names, {self.input.name: batch}))
        except Exception as error:  # ONNX Runtime's exceptions share no other base class
            raise ModelFileError(
                f"ONNX Runtime {ort.__version__} failed on a batch of {len(batch)}: {error}",
                hint="export the model again, or use a smaller batch",
            ) from error

    def _new_queue(self) -> SlotQueue:
        return _RunQueue(self)

    def _release(self) -> None:
        del self._session


class _RunQueue(HostSlotQueue):
    """Slots whose batches run in a pool: all but one, which is filled meanwhile."""

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        super().__init__(
            backend.input, num_slots=backend.num_slots, max_batch=backend.card.batch.max
        )
        self._backend = backend
        self._pool = ThreadPoolExecutor(backend.num_slots - 1)
        self._futures: dict[Any, Future[tuple[np.ndarray, ...]]] = {}

    def _start(self, slot: Any, num_frames: int) -> None:
        self._futures[slot] = self._pool.submit(self._backend._run, slot.array[:num_frames])

    def _finish(self, slot: Any, num_frames: int) -> tuple[np.ndarray, ...]:
        return self._futures[slot].result()

    def _free(self) -> None:
        self._pool.shutdown()


def open_session(
    path: Path, providers: Sequence[Any], *, threads: int | None = None
) -> ort.InferenceSession:
    """Open an ONNX file with ONNX Runtime.

    Args:
        path: The ONNX file.
        providers: Execution providers: names, or (name, options).
        threads: CPU threads per run; ``None`` leaves the number to ONNX Runtime.

    Raises:
        ModelFileError: ONNX Runtime cannot open the file; the message has its reason.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # Without a fallback: it would print to stdout and drop the options, such as the stream.
        return ort.InferenceSession(
            str(path), sess_options=options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no other base class
        raise ModelFileError(
            f"ONNX Runtime {ort.__version__} cannot open {path}: {error}",
            hint="export it again, or check it with: esnet-export inspect",
        ) from error
