"""TensorRT (8.6, 10, 11) and TensorRT-RTX on an NVIDIA GPU, with the slot ring for their copies."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from runtime.artefact.engine_file import (
    EngineRecord,
    check_gpu,
    check_library,
    check_plan,
    load_error,
    read_record,
)
from runtime.backends.gpu import GpuBackend
from runtime.cuda.device import Stream
from runtime.cuda.ring import Slot
from runtime.errors import CudaError, ModelFileError
from runtime.files import cache_dir, read_cache, save_cache
from runtime.tensorrt_api import TensorRt, load_tensorrt


class TensorRtBackend(GpuBackend):
    """Runs an engine; its record ``NAME.engine.json`` lies beside it.

    Opening raises ``EngineMismatch`` if the engine was changed or is for another TensorRT or GPU; the hint is
    the command that rebuilds it.
    """

    name = "tensorrt"

    def _check(self, path: Path, precision: str | None) -> None:
        self._record = read_record(path)
        self._require_precision(precision, (self.precision,), on="this engine")
        check_plan(path, self._record)
        self._trt = load_tensorrt(self._record.tensorrt["kind"])
        self.name = self._trt.kind
        check_library(path, self._record, kind=self._trt.kind, version=self._trt.version)

    def _load(self, path: Path) -> None:
        check_gpu(path, self._record, gpu=self._cuda.name, sm=self._cuda.sm)
        self._engine = _deserialize(self._trt, path, self._record)
        self._context, replays_graphs = _make_context(
            self._trt, self._engine, path, self._resources
        )
        self._use_graphs = not replays_graphs
        self._resources.callback(self._drop_engine)
        self._check_graph(path, _shapes(self._trt, self._engine))

    def _enqueue(self, slot: Slot, num_frames: int, stream: Stream) -> None:
        context = self._context
        shape = (num_frames, *self.input.shape[1:])
        if not context.set_input_shape(self.input.name, shape):
            raise CudaError(f"{self.name} refuses a batch of shape {shape}", hint=_RESTART)
        buffers = (slot.input_buffer, *slot.output_buffers)
        for spec, buffer in zip((self.input, *self.outputs), buffers, strict=True):
            context.set_tensor_address(spec.name, int(buffer.address))
        if not context.execute_async_v3(int(stream.handle)):
            raise CudaError(f"{self.name} could not enqueue a batch of {num_frames}", hint=_RESTART)

    def _drop_engine(self) -> None:
        """Free TensorRT's activations and weights; it needs the CUDA context."""
        with self._cuda.current():
            del self._context, self._engine


def _deserialize(trt: TensorRt, path: Path, record: EngineRecord) -> Any:
    engine = trt.create("Runtime").deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise load_error(path, record, trt.log.last_error() or "no reason given")
    return engine


def _make_context(trt: TensorRt, engine: Any, path: Path, resources: ExitStack) -> tuple[Any, bool]:
    """Make the execution context; also return True if it replays CUDA graphs itself (TensorRT-RTX)."""
    if not (trt.has("IRuntimeCache") and trt.has("CudaGraphStrategy")):
        context, replays_graphs = engine.create_execution_context(), False
    else:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Kernels that TensorRT-RTX compiled on this machine, so that they are compiled once.
        cache_name = f"{trt.kind}-{trt.version}-{path.stem}-{path.stat().st_size}.runtime-cache"
        cache, cache_path = config.create_runtime_cache(), cache_dir() / cache_name
        if content := read_cache(cache_path):
            cache.deserialize(content)
        config.set_runtime_cache(cache)
        context, replays_graphs = engine.create_execution_context(config), True
        resources.callback(_save_runtime_cache, cache, cache_path)
    if context is None:
        raise CudaError(
            f"the activations of {path} do not fit into GPU memory: "
            f"{trt.log.last_error() or 'no reason given'}",
            hint="free GPU memory, or build with a smaller --batch",
        )
    return context, replays_graphs


def _save_runtime_cache(cache: Any, path: Path) -> None:
    content = cache.serialize()
    if content is not None and (problem := save_cache(path, bytes(content))):
        warnings.warn(problem, RuntimeWarning, stacklevel=2)


def _shapes(trt: TensorRt, engine: Any) -> dict[str, tuple[int | None, ...]]:
    """Get the shapes of the engine's inputs and outputs; numpy must support their types."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        try:
            trt.module.nptype(engine.get_tensor_dtype(name))
        except TypeError as error:
            raise ModelFileError(
                f"tensor {name!r} has a type that numpy does not support: {error}"
            ) from error
        shapes[name] = tuple(
            None if size < 0 else int(size) for size in engine.get_tensor_shape(name)
        )
    return shapes


_RESTART = "the engine is broken or the GPU was lost: restart the process, and run esnet-doctor"
