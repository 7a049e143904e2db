"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import openvino as ov

from runtime.backends.base import Backend
from runtime.errors import ModelFileError
from runtime.machine.machine import cpu_name

_HINTS = {"fp32": "f32", "bf16": "bf16"}


@functools.cache
def shared_core() -> ov.Core:
    """Get the only Core of this process.

    The CPU plugin of OpenVINO 2026.4 installs a signal stack when it loads, and restores the previous one
    when its Core ends. If two Cores end in the order they were made, the restored stack was already freed,
    and the next signal (Ctrl-C, or the end of a child) crashes the process.
    """
    return ov.Core()


class OpenVinoBackend(Backend):
    """Runs an ONNX file with OpenVINO's CPU plugin; each result is a fresh array.

    The precision is always an explicit hint: without one, OpenVINO runs an fp32 model in bf16 on CPUs that
    support it. One static network is compiled for each batch size on its first use, because a dynamic batch
    axis is slower at every size.
    """

    name = "openvino"

    def _open(self, path: Path, precision: str | None, threads: int | None) -> None:
        self.device = cpu_name()
        core = shared_core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        offered = ("fp32", "bf16") if has_bf16 else ("fp32",)
        # Layers of an INT8 artefact that are not quantized run in bf16 if the CPU supports it: 13 % less time
        # for the whole network, for 0.01 points of mIoU (benchmarks/results/accuracy-camvid-openvino.json).
        hint = _HINTS[offered[-1]]
        if self.card.precision == "int8":
            offered = ("int8",)
        self._require_precision(precision, offered, on=self.device)
        self.precision = precision or offered[0]
        self._config: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": _HINTS.get(self.precision, hint),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
            # With pinning, two models of one thread each would share the first core.
            self._config["ENABLE_CPU_PINNING"] = False
        self._requests: dict[int, ov.InferRequest] = {}
        try:
            self._model = core.read_model(path)
            self._check_graph(path, _shapes(self._model))
            self._request(self.card.batch.opt)
        except RuntimeError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise ModelFileError(
                f"OpenVINO {ov.__version__} cannot open {path}: {reason}",
                hint="export it again, or check it with: esnet-export inspect",
            ) from error

    def _request(self, size: int) -> ov.InferRequest:
        """Get the request for a batch size; it is compiled on first use."""
        if size not in self._requests:
            model = self._model.clone()
            model.reshape({self.input.name: [size, *self.input.shape[1:]]})
            compiled = shared_core().compile_model(model, "CPU", self._config)
            self._requests[size] = compiled.create_infer_request()
        return self._requests[size]

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        results = self._request(batch.shape[0]).infer({self.input.name: batch}, share_inputs=True)
        return tuple(results[spec.name] for spec in self.outputs)

    def _release(self) -> None:
        self._requests.clear()
        del self._model


def _shapes(model: ov.Model) -> dict[str, tuple[int | None, ...]]:
    return {
        name: tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
        for port in (*model.inputs, *model.outputs)
        for name in port.names
    }
