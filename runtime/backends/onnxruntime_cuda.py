"""ONNX Runtime's CUDA provider, with the slot ring for its copies."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import onnxruntime as ort

from runtime.backends.gpu import GpuBackend
from runtime.backends.onnxruntime import open_session
from runtime.cuda.device import Stream
from runtime.cuda.ring import Slot
from runtime.errors import BackendUnavailable

_PROVIDER = "CUDAExecutionProvider"
_NO_SYNC = "disable_synchronize_execution_providers"


class OnnxRuntimeCudaBackend(GpuBackend):
    """Runs an ONNX file on an NVIDIA GPU.

    Opening raises ``BackendUnavailable`` if ONNX Runtime has no CUDA here or fell back to the CPU, and
    ``ModelFileError`` if it cannot open the file.
    """

    name = "onnxruntime-cuda"
    _use_graphs = False  # ONNX Runtime allocates during a run, which a capture does not allow

    def _check(self, path: Path, precision: str | None) -> None:
        self._require_precision(precision, (self.precision,), on="this artefact")
        _require_cuda()

    def _load(self, path: Path) -> None:
        options = {
            "device_id": "0",
            "user_compute_stream": str(self._stream.handle),
            "has_user_compute_stream": "1",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }
        self._session = open_session(path, [(_PROVIDER, options)])
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._resources.callback(self._drop_session)
        if self._session.get_providers()[0] != _PROVIDER:
            raise BackendUnavailable(
                f"ONNX Runtime {ort.__version__} fell back to the CPU: it could not load CUDA or cuDNN",
                hint="pip install 'onnxruntime-gpu[cuda,cudnn]'; esnet-doctor checks the driver",
            )
        self._options = ort.RunOptions()
        # The ring waits on events; a synchronization in every run would keep batches from overlapping.
        self._options.add_run_config_entry(_NO_SYNC, "1")

    def _enqueue(self, slot: Slot, num_frames: int, stream: Stream) -> None:
        key = slot.index, num_frames
        if key not in self._bindings:
            self._bindings[key] = self._bind(slot, num_frames)
        self._session.run_with_iobinding(self._bindings[key], self._options)

    def _bind(self, slot: Slot, num_frames: int) -> ort.IOBinding:
        """Bind a slot's device memory: once per slot and batch size, because its addresses never change."""
        binding = self._session.io_binding()
        specs, buffers = (self.input, *self.outputs), (slot.input_buffer, *slot.output_buffers)
        binds = (binding.bind_input, *[binding.bind_output] * len(self.outputs))
        for spec, buffer, bind in zip(specs, buffers, binds, strict=True):
            shape = (num_frames, *spec.shape[1:])
            bind(spec.name, "cuda", 0, spec.dtype, shape, buffer.address)
        return binding

    def _drop_session(self) -> None:
        """Free ONNX Runtime's memory; it needs the CUDA context."""
        with self._cuda.current():
            self._bindings.clear()
            del self._session


def _require_cuda() -> None:
    """Refuse an ONNX Runtime without CUDA, or two of them that overwrite each other.

    Raises:
        BackendUnavailable: With the command that fixes it.
    """
    if all(map(_is_installed, ("onnxruntime", "onnxruntime-gpu"))):
        raise BackendUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        )
    available = ort.get_available_providers()
    if _PROVIDER not in available:
        raise BackendUnavailable(
            f"this ONNX Runtime {ort.__version__} has no CUDA provider, only {', '.join(available)}",
            hint="pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
