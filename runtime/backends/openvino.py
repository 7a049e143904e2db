"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from runtime.backends.base import Backend
from runtime.errors import ModelFileError
from runtime.files import cache_dir, read_cache, save_cache, trim_cache
from runtime.machine.machine import cpu_flags, cpu_name, num_cores
from runtime.machine.onednn import MAX_ISA, emulates_bf16, has_bf16
from runtime.slots import HostSlotQueue, SlotQueue

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_CACHE_BYTES = 256 << 20
_DIGEST_BYTES = 32


@functools.cache
def shared_core() -> ov.Core:
    """Get the only Core of this process.

    The CPU plugin of OpenVINO 2026.4 installs a signal stack when it loads, and restores the previous one
    when its Core ends. If two Cores end in the order they were made, the restored stack was already freed,
    and the next signal (Ctrl-C, or the end of a child) crashes the process.
    """
    return ov.Core()


class OpenVinoBackend(Backend):
    """Runs an ONNX file with OpenVINO's CPU plugin.

    ``infer`` uses all threads for one batch. Batches in flight run on a second network, one thread each,
    which is compiled on first use. The precision is always an explicit hint: without one, OpenVINO runs an
    fp32 model in bf16 on CPUs that support it. One static network is compiled for each batch size on its
    first use, because a dynamic batch axis is slower at every size. Compiled networks are kept in the folder
    ``openvino`` of the cache.
    """

    name = "openvino"

    def _open(self, path: Path, precision: str | None, threads: int | None) -> None:
        self.device = cpu_name()
        core = shared_core()
        # OpenVINO lists bf16 on every CPU with AVX-512, and emulates it.
        lists_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        offered = ("fp32", "bf16") if lists_bf16 and has_bf16() else ("fp32",)
        # Layers of an INT8 artefact that are not quantized run in bf16, even emulated: 13 % less time for the
        # whole network, for 0.01 points of mIoU (benchmarks/results/accuracy-camvid-openvino.json).
        hint = "bf16" if lists_bf16 and emulates_bf16() else "f32"
        if self.card.precision == "int8":
            offered = ("int8",)
        self._require_precision(precision, offered, on=self.device)
        self.precision = precision or offered[0]
        self._config: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": _HINTS.get(self.precision, hint),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._num_streams = threads or num_cores()
        self.num_slots = self._num_streams + 1
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
            # With pinning, two models of one thread each would share the first core.
            self._config["ENABLE_CPU_PINNING"] = False
        self._requests: dict[int, ov.InferRequest] = {}
        self._path, self._content = path, path.read_bytes()
        with _one_error(f"cannot open {path}"):
            self._request(self.card.batch.opt)

    def _request(self, size: int) -> ov.InferRequest:
        """Get the request of ``infer`` for a batch size; it is compiled on first use."""
        if size not in self._requests:
            self._requests[size] = self._compile(size, self._config).create_infer_request()
        return self._requests[size]

    @functools.cached_property
    def _model(self) -> ov.Model:
        """The checked graph."""
        model = shared_core().read_model(self._content)
        self._check_graph(self._path, _shapes(model))
        return model

    def _compile(self, size: int, config: dict[str, object]) -> ov.CompiledModel:
        """Compile for a batch size, or take the result of an earlier process from the cache.

        OpenVINO's own cache has neither checksums nor a limit: a damaged file gives wrong labels.
        """
        path = cache_dir() / "openvino" / f"{self._key(size, config)}.blob"
        cached = read_cache(path)
        digest, blob = cached[:_DIGEST_BYTES], cached[_DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() == digest:
            with suppress(RuntimeError):
                compiled = shared_core().import_model(blob, "CPU", config)
                with suppress(OSError):
                    os.utime(path)  # the files that were not used for the longest time go first
                return compiled
        model = self._model.clone()
        model.reshape({self.input.name: [size, *self.input.shape[1:]]})
        compiled = shared_core().compile_model(model, "CPU", config)
        stream = io.BytesIO()
        compiled.export_model(stream)
        blob = stream.getvalue()
        save_cache(path, hashlib.sha256(blob).digest() + blob)
        trim_cache(path.parent, _CACHE_BYTES)
        return compiled

    def _key(self, size: int, config: dict[str, object]) -> str:
        """Identify a compiled network by all that OpenVINO makes it from."""
        instructions = [*sorted(cpu_flags()), os.environ.get(MAX_ISA, "")]
        settings = json.dumps([size, config, ov.__version__, instructions], sort_keys=True)
        return hashlib.sha256(settings.encode() + self._content).hexdigest()

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        with self._in_turn(), _one_error(f"failed on a batch of {len(batch)}"):
            request = self._request(len(batch))
            results = request.infer({self.input.name: batch}, share_inputs=True)
            return tuple(results[spec.name] for spec in self.outputs)

    def _new_queue(self) -> SlotQueue:
        return _RequestQueue(self)

    def _release(self) -> None:
        self._requests.clear()
        self.__dict__.pop("_model", None)


class _RequestQueue(HostSlotQueue):
    """Slots with asynchronous requests: one in each stream, and one that is filled meanwhile."""

    def __init__(self, backend: OpenVinoBackend) -> None:
        super().__init__(
            backend.input, num_slots=backend.num_slots, max_batch=backend.card.batch.max
        )
        self._backend = backend
        streams = backend._num_streams
        self._config = backend._config | {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            "ENABLE_CPU_PINNING": False,
        }
        self._models: dict[int, ov.CompiledModel] = {}
        self._requests: dict[tuple[Any, int], ov.InferRequest] = {}

    def _start(self, slot: Any, num_frames: int) -> None:
        with _one_error(f"cannot compile for a batch of {num_frames}"):
            self._prepare(slot, num_frames)
        self._requests[slot, num_frames].start_async()

    def _prepare(self, slot: Any, num_frames: int) -> None:
        if (slot, num_frames) not in self._requests:
            if num_frames not in self._models:
                self._models[num_frames] = self._backend._compile(num_frames, self._config)
            request = self._models[num_frames].create_infer_request()
            memory = ov.Tensor(slot.array[:num_frames], shared_memory=True)
            request.set_tensor(self._backend.input.name, memory)
            self._requests[slot, num_frames] = request

    def _finish(self, slot: Any, num_frames: int) -> tuple[np.ndarray, ...]:
        request = self._requests[slot, num_frames]
        with _one_error(f"failed on a batch of {num_frames}"):
            request.wait()
        return tuple(request.get_tensor(spec.name).data.copy() for spec in self._backend.outputs)

    def _free(self) -> None:
        self._requests.clear()
        self._models.clear()


@contextmanager
def _one_error(problem: str) -> Iterator[None]:
    """Turn an error of OpenVINO into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ModelFileError(
            f"OpenVINO {ov.__version__} {problem}: {reason}",
            hint="export it again, or check it with: esnet-export inspect",
        ) from error


def _shapes(model: ov.Model) -> dict[str, tuple[int | None, ...]]:
    return {
        name: tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
        for port in (*model.inputs, *model.outputs)
        for name in port.names
    }
