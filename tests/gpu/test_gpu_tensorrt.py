"""Each installed TensorRT on the GPU: engines in the precisions that suit it, beside torch."""

import importlib.util
from itertools import product

import pytest

from runtime.artefact.engine_file import check_gpu
from runtime.backend import installed_backends
from runtime.machine.support import advice_for, limits_of
from runtime.tensorrt_api import KINDS, TENSORRT_RTX
from tests.gpu.checks import (
    BASELINE,
    MIN_AGREEMENT,
    REFERENCE,
    check_labels,
    check_throughput,
    record_bench,
    time_pipelines,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=list(product(KINDS, ("fp32", "fp16", "int8"))), ids="-".join)
def engine(gpu, export_artefact, request):
    """The report of a build: fp16, or fp32 on a GPU with slow fp16; int8 where GPU and TensorRT have it."""
    kind, precision = request.param
    if not any(map(importlib.util.find_spec, KINDS[kind][0])):
        pytest.skip(f"{kind} is not installed")
    if kind == TENSORRT_RTX and not limits_of(gpu[1]).runs_rtx:
        pytest.skip(f"TensorRT-RTX does not support this GPU, {gpu[0]}")
    slow_half = advice_for(gpu[1], "fp16")
    if advice := advice_for(gpu[1], precision):
        pytest.skip(advice)
    if precision == "fp32" and not slow_half:
        pytest.skip("fp16 is faster on this GPU")
    if precision == "int8" and kind == TENSORRT_RTX:
        pytest.skip("TensorRT-RTX runs int8 slower than fp16")
    from export.engine.build import BuildOptions, build_engine

    options = BuildOptions(precision=precision, tensorrt=kind, verify=False)
    artefact = export_artefact("int8" if precision == "int8" else "fp32")
    report = build_engine(artefact, None, options, command=["gpu-check"], force=True)
    check_gpu(report.path, report.record, gpu=gpu[0], sm=gpu[1])
    return report


@pytest.fixture(scope="module")
def backend(engine):
    from runtime.backends.tensorrt import TensorRtBackend

    with TensorRtBackend(engine.path, engine.record.card, timing=True) as backend:
        yield backend


def test_tensorrt_labels(engine, backend, frames, torch_labels, cpu_labels, record):
    precision = engine.record.precision
    record(
        kernels=dict(engine.record.kernels),
        convolutions=precision["built"],
        mac_shares=precision["mac_shares"],
        build_seconds=engine.record.build["seconds"],
        notes=[*engine.notes],
    )
    references = {"torch fp32": torch_labels, "CPU artefact": cpu_labels}
    check_labels(backend, frames, references, record)


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
    ours = f"ours, {backend.name} {backend.precision}"
    pipelines = {**eager, ours: backend_pipeline(backend)}
    time_pipelines(pipelines, frames, record, least=MIN_AGREEMENT[backend.precision])
