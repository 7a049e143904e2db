"""ONNX Runtime's CUDA provider, with the slot ring for its copies."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

import onnxruntime as ort

from runtime.backends.gpu import GpuBackend
from runtime.backends.onnxruntime import open_session
from runtime.cuda.device import Stream
from runtime.cuda.resources import error_from_text
from runtime.cuda.ring import Slot
from runtime.errors import BackendUnavailable, CudaError, ModelFileError

_PROVIDER = "CUDAExecutionProvider"
_GPU_FAILURE = re.compile("(CUDA|CUDNN|CUBLAS) failure|allocate memory|out of memory")
_NO_SYNC = "disable_synchronize_execution_providers"


class OnnxRuntimeCudaBackend(GpuBackend):
    """Runs an ONNX file on an NVIDIA GPU.

    Opening raises ``BackendUnavailable`` if ONNX Runtime has no CUDA here or fell back to the CPU, and
    ``ModelFileError`` if it cannot open the file. fp32 is computed without TF32.
    """

    name = "onnxruntime-cuda"
    provider_options: Mapping[str, str] = {}
    """Further options of the CUDA provider; they take precedence over those below."""

    def _check(self, path: Path, precision: str | None) -> None:
        self._require_precision(precision, (self.precision,), on="this artefact")
        _require_cuda()

    def _load(self, path: Path) -> None:
        options = {
            "device_id": str(self._cuda.index),
            "user_compute_stream": str(self._stream.handle),
            "has_user_compute_stream": "1",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "0" if self.precision == "fp32" else "1",
            **self.provider_options,
        }
        problem = _preload()
        try:
            self._session = open_session(path, [(_PROVIDER, options)])
        except ModelFileError as error:
            if not _GPU_FAILURE.search(str(error)):
                raise
            raise _gpu_error(f"opening {path}", error) from error
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._resources.callback(self._drop_session)
        if self._session.get_providers()[0] != _PROVIDER:
            raise BackendUnavailable(
                f"ONNX Runtime {ort.__version__} fell back to the CPU: it could not load CUDA or cuDNN"
                f"{problem}",
                hint="pip install 'onnxruntime-gpu[cuda,cudnn]'; esnet-doctor checks the driver",
            )
        self._options = ort.RunOptions()
        # The ring waits on events; a synchronization in every run would keep batches from overlapping.
        self._options.add_run_config_entry(_NO_SYNC, "1")

    def _enqueue(self, slot: Slot, num_frames: int, stream: Stream) -> None:
        key = slot.index, num_frames
        is_new = key not in self._bindings
        try:
            if is_new:
                self._bindings[key] = self._bind(slot, num_frames)
            # ONNX Runtime records the memory pattern of a shape in its first run and allocates it in the
            # second one. A captured run must not allocate.
            for _ in range(2 if is_new else 1):
                self._session.run_with_iobinding(self._bindings[key], self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no other base class
            raise _gpu_error(f"a batch of {num_frames}", error) from error

    def _bind(self, slot: Slot, num_frames: int) -> ort.IOBinding:
        """Bind a slot's device memory: once per slot and batch size, because its addresses never change."""
        binding = self._session.io_binding()
        specs, buffers = (self.input, *self.outputs), (slot.input_buffer, *slot.output_buffers)
        binds = (binding.bind_input, *[binding.bind_output] * len(self.outputs))
        for spec, buffer, bind in zip(specs, buffers, binds, strict=True):
            shape = (num_frames, *spec.shape[1:])
            bind(spec.name, "cuda", self._cuda.index, spec.dtype, shape, buffer.address)
        return binding

    def _drop_session(self) -> None:
        """Free ONNX Runtime's memory; it needs the CUDA context."""
        with self._cuda.current():
            self._bindings.clear()
            del self._session


def _preload() -> str:
    """Load CUDA and cuDNN from NVIDIA's wheels, if they are installed, and return its first complaint."""
    output = io.StringIO()
    if hasattr(ort, "preload_dlls"):  # from 1.21 on
        with redirect_stdout(output):
            ort.preload_dlls()
    first = output.getvalue().strip().partition("\n")[0]
    return f" ({first})" if first else ""


def _gpu_error(what: str, error: Exception) -> CudaError:
    text = " ".join(str(error).split())
    return error_from_text(f"ONNX Runtime {ort.__version__}: {what}", text[:400])


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
