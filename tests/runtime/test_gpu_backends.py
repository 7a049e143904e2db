"""What the GPU backends refuse before they open a GPU, and the notes that users see.

``tests/gpu_rules`` runs them over the stub of the driver.
"""

import sys
from dataclasses import replace

import onnxruntime as ort
import pytest

from benchmarks.frames import load_frames
from benchmarks.models import BenchOptions
from benchmarks.report.console import notes
from benchmarks.timing.latency import TimingConfig
from benchmarks.timing.suite import bench_models
from export.engine.build import BuildOptions, build_engine
from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import read_record, write_engine
from runtime.backend import open_backend
from runtime.backends import onnxruntime_cuda
from runtime.backends.null import NullBackend
from runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from runtime.backends.tensorrt import TensorRtBackend
from runtime.errors import BackendUnavailable, EngineMismatch, InvalidInput
from runtime.segment import segment_source
from tests.fake_trt import fake_tensorrt


@pytest.fixture
def engine(make_artefact, tmp_path, monkeypatch):
    """An fp32 engine of TensorRT 10.3, which is installed."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
    monkeypatch.setattr("export.engine.build.cuda_gpu", lambda *_: ("NVIDIA RTX 3060", (8, 6)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "small.engine"
    options = BuildOptions(precision="fp32", tensorrt="tensorrt")
    build_engine(make_artefact(), path, options, command=["esnet-export", "build-engine"])
    return path


def open_engine(path, **settings):
    return TensorRtBackend(path, read_record(path).card, **settings)


class TestTensorRt:
    def test_another_tensorrt_is_refused_before_it_is_asked(self, engine, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("11.4.0"))
        with pytest.raises(
            EngineMismatch, match=r"was built by tensorrt 10\.3\.0, here is tensorrt 11\.4\.0"
        ):
            open_engine(engine)

    def test_an_edited_engine_is_refused_before_it_is_loaded(self, engine):
        engine.write_bytes(engine.read_bytes() + b"x")
        loaded = sys.modules["tensorrt"].state.loaded
        with pytest.raises(EngineMismatch, match="the sha256 differs"):
            open_engine(engine)
        assert sys.modules["tensorrt"].state.loaded == loaded

    @pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
    def test_another_precision_is_refused_in_the_name_of_its_tensorrt(self, engine, kind):
        record = replace(read_record(engine), tensorrt={"kind": kind, "version": "1"})
        write_engine(engine, engine.read_bytes(), record)
        with pytest.raises(InvalidInput, match=f"{kind} cannot run fp16 on this engine"):
            open_engine(engine, precision="fp16")

    def test_without_a_gpu_the_reason_is_told(self, engine, no_cuda_libraries):
        with pytest.raises(BackendUnavailable, match=r"pycuda: .*pycuda.*; cuda-bindings: .*cuda"):
            open_backend(engine)

    def test_an_engine_names_the_backends_that_do_not_run_it(self, engine):
        with pytest.raises(InvalidInput, match=r"does not run .*, an engine of tensorrt"):
            open_backend(engine, "onnxruntime")

    def test_an_onnx_file_is_not_run_as_an_engine(self, make_artefact):
        with pytest.raises(InvalidInput, match="'tensorrt' runs engines") as caught:
            open_backend(make_artefact(), "tensorrt")
        assert "build-engine" in caught.value.hint


def open_onnx(path, **settings):
    return OnnxRuntimeCudaBackend(path, ModelCard.from_file(path), **settings)


class TestOnnxRuntimeCuda:
    def test_another_precision_is_refused(self, make_artefact):
        with pytest.raises(InvalidInput, match="onnxruntime-cuda cannot run bf16"):
            open_onnx(make_artefact(), precision="bf16")

    def test_both_packages_together_are_named(self, make_artefact, monkeypatch):
        monkeypatch.setattr(onnxruntime_cuda, "_is_installed", lambda name: True)
        with pytest.raises(BackendUnavailable, match="both installed and overwrite each other"):
            open_onnx(make_artefact())

    def test_the_cpu_build_is_told_apart(self, make_artefact):
        if "CUDAExecutionProvider" in ort.get_available_providers():
            pytest.skip("this ONNX Runtime has CUDA")
        with pytest.raises(BackendUnavailable, match="has no CUDA provider") as caught:
            open_backend(make_artefact(), "onnxruntime-cuda")
        assert "onnxruntime-gpu" in caught.value.hint

    def test_it_is_never_chosen_by_itself(self, make_artefact):
        with open_backend(make_artefact()) as backend:
            assert backend.name != "onnxruntime-cuda"


class TestNotes:
    @pytest.fixture
    def noted(self, monkeypatch):
        monkeypatch.setattr(NullBackend, "notes", ("batches of 1 run without a CUDA graph",))

    def test_esnet_segment_shows_them(self, noted, make_artefact, draw_image, tmp_path):
        report = segment_source(
            draw_image("in.png"), make_artefact(), tmp_path / "out.png", backend="null"
        )
        assert "batches of 1 run without a CUDA graph" in report.warnings

    def test_esnet_bench_shows_them(self, noted, make_artefact):
        config = TimingConfig(
            warmup_seconds=0.0,
            warmup_calls=1,
            warmup_cap_seconds=0.05,
            min_seconds=0.0,
            min_samples=5,
            cap_seconds=0.2,
            block_seconds=0.01,
        )
        options = BenchOptions(backends=["null"], config=config)
        report = bench_models([make_artefact()], load_frames(None, (64, 128)), options)
        (note,) = (line for line in notes(report) if "without a CUDA graph" in line)
        assert note.startswith(f"{report.results[0].model.name}: ")
