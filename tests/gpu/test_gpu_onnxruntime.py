"""ONNX Runtime CUDA on the GPU: labels, variants, latency and throughput beside torch."""

from contextlib import ExitStack, suppress

import pytest

from runtime.artefact.card import ModelCard
from runtime.cuda.device import CUDA_LIBRARIES, open_device
from runtime.errors import BackendUnavailable
from tests.gpu.checks import (
    SIZE_HW,
    check_labels,
    check_throughput,
    import_or_skip,
    record_bench,
    time_pipelines,
    time_variants,
)

pytestmark = pytest.mark.gpu
CUDA = "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def open_backend(gpu, export_artefact):
    """Open the artefact of a precision."""
    onnxruntime = import_or_skip("onnxruntime")
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has no CUDA: install onnxruntime-gpu")
    from runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

    def open_precision(precision, *, library=None, **settings):
        """Open it with a CUDA library; ``settings`` are attributes of the backend's class."""
        path = export_artefact(precision)
        variant = type("Variant", (OnnxRuntimeCudaBackend,), settings)
        device = open_device(library)
        return variant(path, ModelCard.from_file(path), device=device, timing=True)

    return open_precision


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def backend(open_backend, request):
    with open_backend(request.param) as backend:
        yield backend


def test_onnxruntime_labels(backend, frames, torch_labels, cpu_labels, record):
    options = backend._session.get_provider_options()[CUDA]
    record(use_tf32=options["use_tf32"])
    if backend.precision == "fp32":
        assert options["use_tf32"] == "0", "fp32 would be measured in TF32"
    references = {"torch fp32": torch_labels, "CPU artefact": cpu_labels}
    check_labels(backend, frames, references, record)


def test_onnxruntime_throughput(backend, frames, torch_labels, record):
    check_throughput(backend, frames, torch_labels, record)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_variants(open_backend, frames, cpu_labels, record, precision):
    """Graphs, channels-last kernels and each CUDA library, one at a time."""
    with ExitStack() as stack:
        opened = {
            "default": open_backend(precision),
            "without CUDA graphs": open_backend(precision, _use_graphs=False),
            "prefer_nhwc": open_backend(precision, provider_options={"prefer_nhwc": "1"}),
        }
        for library in CUDA_LIBRARIES:
            with suppress(BackendUnavailable):
                opened[library] = open_backend(precision, library=library)
        variants = {name: stack.enter_context(backend) for name, backend in opened.items()}
        time_variants(variants, frames, cpu_labels, record)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_bench_of_batches(open_backend, export_artefact, frames, record, precision):
    record_bench(export_artefact(precision), "onnxruntime-cuda", frames, record)


def test_onnxruntime_latency(open_backend, torch_pipelines, checkpoint, frames, tmp_path, record):
    from benchmarks.baselines.pipelines import backend_pipeline, plain_onnx_pipeline

    path = tmp_path / "plain.onnx"
    plain = plain_onnx_pipeline(checkpoint, SIZE_HW, path, provider=CUDA)
    with open_backend("fp32") as fp32, open_backend("fp16") as fp16:
        pipelines = {
            **torch_pipelines,
            "plain ONNX Runtime CUDA": plain,
            "ours, ONNX Runtime CUDA fp32": backend_pipeline(fp32),
            "ours, ONNX Runtime CUDA fp16": backend_pipeline(fp16),
        }
        time_pipelines(pipelines, frames, record)
