"""TensorRT (8.6, 10, 11) and TensorRT-RTX on an NVIDIA GPU: one path for all, over the slot ring."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import (
    EngineRecord,
    check_gpu,
    check_library,
    check_plan,
    read_record,
)
from runtime.backends.base import require_precision
from runtime.backends.gpu import NUM_SLOTS, GpuBackend
from runtime.cuda.device import CudaDevice, Stream, open_device
from runtime.cuda.ring import Slot, SlotLayout, SlotRing
from runtime.errors import CudaError, EngineMismatch, ModelFileError
from runtime.files import atomic_path, cache_dir
from runtime.tensorrt_api import TensorRt, load_tensorrt


class TensorRtBackend(GpuBackend):
    """Runs an engine."""

    name = "tensorrt"

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        *,
        precision: str | None = None,
        threads: int | None = None,
        num_slots: int = NUM_SLOTS,
        device: CudaDevice | None = None,
        timing: bool = False,
    ) -> None:
        """Check engine, library and GPU against the record, load, and set up the ring.

        Args:
            path: The engine; its record lies beside it.
            card: The record's card.
            precision: The engine's own; nothing else can be had.
            threads: Ignored: the GPU computes.
            num_slots: Batches in flight.
            device: The GPU; ``None`` opens the first. The backend owns it and closes it.
            timing: Whether the ring measures its stages; see ``SlotRing.stage_times_ms``.

        Raises:
            EngineMismatch: Changed, of another TensorRT, or for another GPU; the hint rebuilds it.
            BackendUnavailable: No TensorRT, no CUDA library, no driver or no GPU.
            CudaError: Out of memory, or the GPU failed.
        """
        super().__init__(card)
        record = read_record(path)
        require_precision(precision, (card.precision,), backend=self.name, device="this engine")
        self.precision = card.precision
        check_plan(path, record)
        trt = load_tensorrt(record.tensorrt["kind"])
        self.name = trt.kind
        check_library(path, record, kind=trt.kind, version=trt.version)
        try:
            self._open(path, record, trt, device, num_slots, timing)
        except BaseException:
            self._release()
            raise

    def _open(
        self,
        path: Path,
        record: EngineRecord,
        trt: TensorRt,
        device: CudaDevice | None,
        num_slots: int,
        timing: bool,
    ) -> None:
        self._cuda = device or open_device()
        self._resources.callback(self._cuda.close)
        check_gpu(path, record, gpu=self._cuda.name, sm=self._cuda.sm)
        self.device = f"{self._cuda.name} ({self._cuda.library})"
        with self._cuda.current():
            self._engine = _deserialized(trt, path, record)
            self._context, keeps_graphs = _context(trt, self._engine, path, self._resources)
            self._resources.callback(self._drop_engine)
            self._check_graph(path, _shapes(trt, self._engine))
            layout = SlotLayout(
                input=self.input, outputs=self.outputs, max_batch=self.card.batch.max
            )
            ring = SlotRing(
                self._cuda,
                layout,
                self._enqueue,
                num_slots=num_slots,
                use_graphs=not keeps_graphs,
                timing=timing,
            )
        self._resources.callback(ring.close)
        self.ring = ring

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
        """Let TensorRT free the activations and the weights, its CUDA context current."""
        with self._cuda.current():
            del self._context, self._engine


def _deserialized(trt: TensorRt, path: Path, record: EngineRecord) -> Any:
    runtime = trt.new_runtime()
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = trt.log.last_error() or "it gave no reason"
        if "memory" in reason.lower():
            raise CudaError(
                f"{path} does not fit into GPU memory: {reason}",
                hint="free GPU memory, or use a smaller batch",
            )
        raise EngineMismatch(
            f"{trt.kind} {trt.version} does not load {path}: {reason}",
            hint=f"build it again: {record.rebuild_command}",
        )
    return engine


def _context(trt: TensorRt, engine: Any, path: Path, resources: ExitStack) -> tuple[Any, bool]:
    """Make the execution context, and tell whether it replays CUDA graphs by itself (TensorRT-RTX)."""
    if not (trt.has("IRuntimeCache") and trt.has("CudaGraphStrategy")):
        context, keeps_graphs = engine.create_execution_context(), False
    else:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache, cache_path = config.create_runtime_cache(), _runtime_cache_path(trt, path)
        if cache_path.is_file():
            cache.deserialize(cache_path.read_bytes())
        config.set_runtime_cache(cache)
        context, keeps_graphs = engine.create_execution_context(config), True
        resources.callback(_keep_runtime_cache, cache, cache_path)
    if context is None:
        raise CudaError(
            f"no room for the activations of {path}: {trt.log.last_error() or 'no reason given'}",
            hint="free GPU memory, or build with a smaller --batch",
        )
    return context, keeps_graphs


def _runtime_cache_path(trt: TensorRt, path: Path) -> Path:
    """Name the file that keeps kernels compiled on this machine, so that they are compiled once."""
    return cache_dir() / f"{trt.kind}-{trt.version}-{path.stem}-{path.stat().st_size}.runtime-cache"


def _keep_runtime_cache(cache: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(bytes(cache.serialize()))


def _shapes(trt: TensorRt, engine: Any) -> dict[str, tuple[int | None, ...]]:
    """Read inputs and outputs of the engine, and check that each is of a type that numpy knows."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        try:
            trt.module.nptype(engine.get_tensor_dtype(name))
        except TypeError as error:
            raise ModelFileError(f"tensor {name!r} has a type that numpy lacks: {error}") from error
        shapes[name] = tuple(
            None if size < 0 else int(size) for size in engine.get_tensor_shape(name)
        )
    return shapes


_RESTART = "the engine is broken or the GPU was lost: esnet-doctor, and restart the process"
