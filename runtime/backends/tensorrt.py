"""TensorRT (8.6, 10, 11) and TensorRT-RTX on an NVIDIA GPU, with the slot ring for their copies."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from runtime.artefact.engine_file import (
    EngineRecord,
    check_gpu,
    check_library,
    check_plan,
    gpu_note,
    load_error,
    read_record,
)
from runtime.backends.gpu import GpuBackend
from runtime.cuda.device import CudaDevice, Stream
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
        self.name = self._record.tensorrt["kind"]
        self._require_precision(precision, (self.precision,), on="this engine")
        check_plan(path, self._record)
        self._trt = load_tensorrt(self.name)
        check_library(path, self._record, kind=self.name, version=self._trt.version)

    def _load(self, path: Path) -> None:
        check_gpu(path, self._record, gpu=self._cuda.name, sm=self._cuda.sm)
        if note := gpu_note(path, self._record, gpu=self._cuda.name):
            self._notes.append(note)
        engine = _deserialize(self._trt, path, self._record)
        self._check_graph(path, _shapes(self._trt, engine))
        config, cache = _runtime_config(self._trt, engine), None
        major, minor = self._cuda.sm
        cache_path = cache_dir() / (
            f"{self.name}-{self._trt.version}-sm{major}{minor}-{path.stem}-{path.stat().st_size}"
            ".runtime-cache"
        )
        if config is not None:
            cache = _load_runtime_cache(config, cache_path)
        self._contexts = _Contexts(self._trt, engine, config, cache, self._cuda, self._stream)
        self._resources.callback(self._contexts.close)
        if cache is not None:  # saved first, while the engine exists
            self._resources.callback(_save_runtime_cache, cache, cache_path)
        self._use_graphs = config is None and not self._contexts.is_single
        if self._contexts.is_single:
            self._notes.append(
                "batches run without CUDA graphs, because this engine of TensorRT 8.6 allows one execution "
                f"context: build it again: {self._record.rebuild_command}"
            )

    def _enqueue(self, slot: Slot, num_frames: int, stream: Stream) -> None:
        assert stream is self._stream, "contexts with shared activations must run on one stream"
        context, is_bound = self._contexts.get(slot.index, num_frames)
        if not is_bound:
            shape = (num_frames, *self.input.shape[1:])
            if not context.set_input_shape(self.input.name, shape):
                raise CudaError(f"{self.name} refuses a batch of shape {shape}", hint=_RESTART)
            buffers = (slot.input_buffer, *slot.output_buffers)
            for spec, buffer in zip((self.input, *self.outputs), buffers, strict=True):
                context.set_tensor_address(spec.name, int(buffer.address))
        if not context.execute_async_v3(int(stream.handle)):
            raise CudaError(f"{self.name} could not enqueue a batch of {num_frames}", hint=_RESTART)


class _Contexts:
    """Execution contexts of an engine: one for each slot and batch size, with shared activations.

    A captured graph holds the shape, the addresses and the memory of its context, and TensorRT-RTX captures
    again when one of them changes. So each context keeps its own. All contexts run on one stream, one after
    the other, so they can share the activations.
    """

    def __init__(
        self,
        trt: TensorRt,
        engine: Any,
        config: Any,
        cache: Any,
        device: CudaDevice,
        stream: Stream,
    ) -> None:
        self._trt, self._engine, self._config, self._cache = trt, engine, config, cache
        self._device, self._stream = device, stream
        has_v2 = trt.has("ICudaEngine.device_memory_size_v2")
        self._size = int(engine.device_memory_size_v2 if has_v2 else engine.device_memory_size)
        try:
            self._activations = device.device_buffer(max(self._size, 1))
        except CudaError as error:
            raise CudaError(f"the engine's activations: {error}", hint=_SMALLER) from error
        self._contexts: dict[tuple[int, int], Any] = {}
        self._unused: list[Any] = []
        self.is_single = False
        """True if the engine allows one context only, which is bound again for every batch."""
        try:
            self._unused.append(self._create())
            if not trt.has(_STRATEGY):
                # TensorRT 8.6 gives the only optimization profile to the first context, unless the engine
                # was built with PROFILE_SHARING_0806. Later versions always share it.
                second = self._create()
                self.is_single = not self._has_profile(second)
                if not self.is_single:
                    self._unused.append(second)
        except BaseException:
            self.close()
            raise

    def get(self, slot: int, num_frames: int) -> tuple[Any, bool]:
        """Get the context of a slot and batch size, and True if its shape and addresses are set."""
        key = slot, num_frames
        if self.is_single:
            return self._unused[0], False
        if key in self._contexts:
            return self._contexts[key], True
        context = self._contexts[key] = self._unused.pop() if self._unused else self._create()
        self._has_profile(context)
        return context, False

    def close(self) -> None:
        """Free the contexts, then the engine and the activations."""
        with self._device.current():
            self._contexts.clear()
            self._unused.clear()
            self._config = self._cache = self._engine = None
            self._activations.release()

    def _create(self) -> Any:
        if self._config is not None:
            context = self._engine.create_execution_context(self._config)
        elif self._trt.has(_STRATEGY):
            strategy = self._trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        else:
            context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            reason = self._trt.log.last_error() or "no reason given"
            raise CudaError(f"an execution context cannot be created: {reason}", hint=_SMALLER)
        address = int(self._activations.address)
        if self._trt.has("IExecutionContext.set_device_memory"):
            context.set_device_memory(address, self._size)
        else:
            context.device_memory = address
        return context

    def _has_profile(self, context: Any) -> bool:
        """Select the only profile if TensorRT has not done so; return False if it refuses."""
        if context.active_optimization_profile >= 0:
            return True
        return bool(context.set_optimization_profile_async(0, int(self._stream.handle)))


def _deserialize(trt: TensorRt, path: Path, record: EngineRecord) -> Any:
    runtime = trt.create("Runtime")
    if record.build.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such an engine contains a TensorRT runtime
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise load_error(path, record, trt.log.last_error() or "no reason given")
    return engine


def _runtime_config(trt: TensorRt, engine: Any) -> Any:
    """Make the configuration of TensorRT-RTX's contexts, which replay graphs; ``None`` for TensorRT."""
    if not (trt.has("IRuntimeCache") and trt.has("CudaGraphStrategy")):
        return None
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    config.set_execution_context_allocation_strategy(
        trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    return config


def _load_runtime_cache(config: Any, path: Path) -> Any:
    """Give a configuration the kernels that TensorRT-RTX compiled on this machine."""
    cache = config.create_runtime_cache()
    if content := read_cache(path):
        cache.deserialize(content)
    config.set_runtime_cache(cache)
    return cache


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
_SMALLER = "free GPU memory (nvidia-smi lists what uses it), or build with a smaller --batch"
_STRATEGY = "ExecutionContextAllocationStrategy"
