"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.artefact.card import ModelCard
from runtime.backends.base import Backend, require_precision
from runtime.errors import BackendUnavailable, ModelFileError
from runtime.machine.machine import cpu_name

_QUIET = 3  # errors only; warnings about unused initializers help nobody here


class OnnxRuntimeBackend(Backend):
    """Runs an ONNX file with ONNX Runtime's CPU provider; each result is a fresh array."""

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        *,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(card)
        if not hasattr(ort, "InferenceSession"):
            raise BackendUnavailable(
                "onnxruntime is broken: it and onnxruntime-gpu were both installed, and one was removed",
                hint="pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime",
            )
        # The CPU provider computes an fp16 graph in fp32, through casts.
        self.precision = "int8" if card.precision == "int8" else "fp32"
        require_precision(precision, (self.precision,), backend=self.name, device="the CPU")
        self.device = cpu_name()
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no base but this
            raise ModelFileError(
                f"ONNX Runtime {ort.__version__} cannot open {path}: {error}",
                hint="export it again, or check it with: esnet-export inspect",
            ) from error
        self._check_graph(path, _shapes(self._session))
        self._output_names = [spec.name for spec in self.outputs]

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(self._session.run(self._output_names, {self.input.name: batch}))

    def _release(self) -> None:
        del self._session


def _shapes(session: ort.InferenceSession) -> dict[str, tuple[int | None, ...]]:
    return {
        edge.name: tuple(size if isinstance(size, int) else None for size in edge.shape)
        for edge in (*session.get_inputs(), *session.get_outputs())
    }
