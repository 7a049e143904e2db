"""ONNX Runtime's CUDA provider over the slot ring: page-locked copies, and nothing in between."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import onnxruntime as ort

from runtime.artefact.card import ModelCard
from runtime.backends.base import require_precision
from runtime.backends.gpu import NUM_SLOTS, GpuBackend
from runtime.cuda.device import CudaDevice, Stream, open_device
from runtime.cuda.ring import Slot, SlotLayout, SlotRing
from runtime.errors import BackendUnavailable, ModelFileError

_QUIET = 3
_PROVIDER = "CUDAExecutionProvider"
_NO_SYNC = "disable_synchronize_execution_providers"


class OnnxRuntimeCudaBackend(GpuBackend):
    """Runs an ONNX file on an NVIDIA GPU."""

    name = "onnxruntime-cuda"

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
        """Open a session on a stream of our own, and set up the ring around it.

        Args:
            path: The artefact.
            card: Its card.
            precision: The artefact's own; it is in the graph.
            threads: Ignored: the GPU computes.
            num_slots: Batches in flight.
            device: The GPU; ``None`` opens the first. The backend owns it and closes it.
            timing: Whether the ring measures its stages; see ``SlotRing.stage_times_ms``.

        Raises:
            BackendUnavailable: ONNX Runtime has no CUDA here, or fell back to the CPU; or no CUDA library.
            ModelFileError: ONNX Runtime does not open the file.
        """
        super().__init__(card)
        require_precision(precision, (card.precision,), backend=self.name, device="this artefact")
        self.precision = card.precision
        _require_cuda()
        try:
            self._open(path, device, num_slots, timing)
        except BaseException:
            self._release()
            raise

    def _open(self, path: Path, device: CudaDevice | None, num_slots: int, timing: bool) -> None:
        self._cuda = device or open_device()
        self._resources.callback(self._cuda.close)
        self.device = f"{self._cuda.name} ({self._cuda.library})"
        with self._cuda.current():
            self._stream = self._cuda.new_stream()
            self._resources.callback(self._free_stream)
            self._session = _session(path, self._stream)
            self._resources.callback(self._drop_session)
            self._options = ort.RunOptions()
            # The ring waits by events; a wait in every run would keep batches from overlapping.
            self._options.add_run_config_entry(_NO_SYNC, "1")
            self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
            layout = SlotLayout(
                input=self.input, outputs=self.outputs, max_batch=self.card.batch.max
            )
            # ONNX Runtime allocates in its runs: they cannot be captured from outside.
            self.ring = SlotRing(
                self._cuda,
                layout,
                self._enqueue,
                num_slots=num_slots,
                use_graphs=False,
                compute_stream=self._stream,
                timing=timing,
            )
        self._resources.callback(self.ring.close)

    def _enqueue(self, slot: Slot, num_frames: int, stream: Stream) -> None:
        key = slot.index, num_frames
        if key not in self._bindings:
            self._bindings[key] = self._bound(slot, num_frames)
        self._session.run_with_iobinding(self._bindings[key], self._options)

    def _bound(self, slot: Slot, num_frames: int) -> ort.IOBinding:
        """Bind a slot's device memory; the addresses never change, so this is done once a slot and size."""
        binding = self._session.io_binding()
        spec = self.input
        binding.bind_input(
            spec.name,
            "cuda",
            0,
            spec.dtype,
            (num_frames, *spec.shape[1:]),
            slot.input_buffer.address,
        )
        for spec, buffer in zip(self.outputs, slot.output_buffers, strict=True):
            binding.bind_output(
                spec.name, "cuda", 0, spec.dtype, (num_frames, *spec.shape[1:]), buffer.address
            )
        return binding

    def _drop_session(self) -> None:
        """Let ONNX Runtime free its memory, its CUDA context current."""
        with self._cuda.current():
            self._bindings.clear()
            del self._session

    def _free_stream(self) -> None:
        with self._cuda.current():
            self._stream.free()


def _session(path: Path, stream: Stream) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    provider = (
        _PROVIDER,
        {
            "device_id": "0",
            "user_compute_stream": str(stream.handle),
            "has_user_compute_stream": "1",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        },
    )
    try:
        session = ort.InferenceSession(str(path), sess_options=options, providers=[provider])
    except Exception as error:  # ONNX Runtime's own exceptions share no base but this
        raise ModelFileError(
            f"ONNX Runtime {ort.__version__} cannot open {path}: {error}",
            hint="export it again, or check it with: esnet-export inspect",
        ) from error
    if session.get_providers()[0] != _PROVIDER:
        raise BackendUnavailable(
            f"ONNX Runtime {ort.__version__} fell back to the CPU: it could not load CUDA or cuDNN",
            hint="pip install 'onnxruntime-gpu[cuda,cudnn]'; esnet-doctor tells which CUDA it wants",
        )
    return session


def _require_cuda() -> None:
    """Refuse an ONNX Runtime without CUDA, and two of them in one folder.

    Raises:
        BackendUnavailable: With the way out.
    """
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(both) == 2:
        raise BackendUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        )
    if _PROVIDER not in ort.get_available_providers():
        raise BackendUnavailable(
            f"this ONNX Runtime {ort.__version__} has no CUDA provider, only "
            f"{', '.join(ort.get_available_providers())}",
            hint="pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
