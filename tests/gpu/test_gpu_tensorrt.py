"""Each installed TensorRT on the GPU: an fp16 engine, its labels, latency and throughput beside torch."""

import importlib.util

import pytest

from runtime.artefact.engine_file import check_gpu
from runtime.backend import installed_backends
from runtime.machine.support import limits_of
from runtime.tensorrt_api import KINDS, TENSORRT_RTX
from tests.gpu.checks import (
    BASELINE,
    REFERENCE,
    check_labels,
    check_throughput,
    record_bench,
    time_pipelines,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=list(KINDS))
def engine(gpu, export_artefact, request):
    """The report of an fp16 build."""
    if not any(map(importlib.util.find_spec, KINDS[request.param][0])):
        pytest.skip(f"{request.param} is not installed")
    if request.param == TENSORRT_RTX and not limits_of(gpu[1]).runs_rtx:
        pytest.skip(f"TensorRT-RTX does not support this GPU, {gpu[0]}")
    from export.engine.build import BuildOptions, build_engine

    options = BuildOptions(precision="fp16", tensorrt=request.param, verify=False)
    artefact = export_artefact("fp32")
    report = build_engine(artefact, None, options, command=["gpu-check"], force=True)
    check_gpu(report.path, report.record, gpu=gpu[0], sm=gpu[1])
    return report


@pytest.fixture(scope="module")
def backend(engine):
    from runtime.backends.tensorrt import TensorRtBackend

    with TensorRtBackend(engine.path, engine.record.card, timing=True) as backend:
        yield backend


def test_tensorrt_labels_equal_torch(engine, backend, frames, torch_labels, record):
    record(kernels=dict(engine.record.kernels))
    check_labels(backend, frames, torch_labels, record)


@pytest.mark.parametrize("use_graphs", [True, False], ids=["graphs", "no_graphs"])
def test_tensorrt_throughput(engine, frames, torch_labels, record, use_graphs):
    from runtime.backends.tensorrt import TensorRtBackend

    with TensorRtBackend(engine.path, engine.record.card, timing=True) as backend:
        backend.ring._use_graphs &= use_graphs
        check_throughput(backend, frames, torch_labels, record)


def test_tensorrt_bench_of_batches(engine, backend, frames, record):
    if not installed_backends():
        pytest.skip("no backend for the fp32 reference: install onnxruntime or openvino")
    record_bench(engine.path, backend.name, frames, record)


def test_tensorrt_latency(backend, torch_pipelines, frames, record):
    from benchmarks.baselines.pipelines import backend_pipeline

    eager = {name: torch_pipelines[name] for name in (REFERENCE, BASELINE)}
    pipelines = {**eager, f"ours, {backend.name} fp16": backend_pipeline(backend)}
    time_pipelines(pipelines, frames, record)
