"""The GPU backends on a fake GPU: TensorRT of every generation, and ONNX Runtime's CUDA provider."""

import hashlib
import json
import sys
import weakref
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.frames import load_frames
from benchmarks.models import BenchOptions
from benchmarks.report.console import notes
from benchmarks.timing.latency import TimingConfig
from benchmarks.timing.suite import bench_models
from export.engine.build import BuildOptions, build_engine
from runtime.artefact.card import BatchRange, ModelCard
from runtime.artefact.engine_file import EngineRecord, read_record, write_engine
from runtime.backend import open_backend
from runtime.backends import onnxruntime, onnxruntime_cuda
from runtime.backends.null import NullBackend
from runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from runtime.backends.tensorrt import TensorRtBackend
from runtime.errors import (
    BackendUnavailable,
    CudaError,
    EngineMismatch,
    InvalidInput,
    ModelFileError,
)
from runtime.segment import segment_source
from runtime.segmenter import Segmenter
from tests.fake_cuda import FakeDevice
from tests.fake_trt import GENERATIONS, build_plan, fake_tensorrt

SIZE = (64, 128)


def frames_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), np.uint8)


@pytest.fixture
def truth(make_artefact):
    """Labels of ONNX Runtime on the CPU."""
    backend = open_backend(make_artefact(), "onnxruntime")
    yield lambda batch: backend.infer(batch)[0]
    backend.close()


def runner(device: FakeDevice):
    """Run a fake engine's model on fake device memory."""

    def run(model, shape, addresses, stream, check) -> bool:
        session = sessions.setdefault(
            id(model),
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]),
        )
        frames = addresses["frames"]
        outputs = [output.name for output in session.get_outputs()]

        def kernel() -> None:
            check()
            batch = device.at(frames)[: int(np.prod(shape))].reshape(shape)
            for name, array in zip(outputs, session.run(None, {"frames": batch}), strict=True):
                device.at(addresses[name])[: array.nbytes] = array.view(np.uint8).ravel()

        device.launch(kernel, (frames,), [addresses[name] for name in outputs], stream)
        return True

    sessions: dict[int, ort.InferenceSession] = {}
    return run


@pytest.fixture
def engine(request, make_artefact, tmp_path, monkeypatch):
    """An engine of a TensorRT generation, and the device to run it on."""
    generation = getattr(request, "param", "10.3.0")
    module = fake_tensorrt(generation)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("export.engine.build.first_cuda_gpu", lambda: ("NVIDIA RTX 3060", (8, 6)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "small.engine"
    build_engine(
        make_artefact(),
        path,
        BuildOptions(precision="fp32", tensorrt="tensorrt"),
        command=["esnet-export", "build-engine", "small.onnx", "--fp32"],
    )
    device = FakeDevice()
    module.state.run = runner(device)
    module.state.is_capturing = lambda stream: device.capturing is not None
    module.state.check_memory = lambda address, size: check_memory(device, address, size)
    return path, device, module


def check_memory(device: FakeDevice, address: int, size: int) -> None:
    assert device.buffers[address].num_bytes >= size


def opened(engine, **settings) -> TensorRtBackend:
    path, device, _ = engine
    return TensorRtBackend(path, read_record(path).card, device=device, **settings)


every_generation = pytest.mark.parametrize("engine", GENERATIONS, indirect=True)


class TestTensorRt:
    @every_generation
    @pytest.mark.parametrize("count", [1, 3, 8])
    def test_labels_are_those_of_the_artefact(self, engine, truth, count):
        batch = frames_of(count)
        with opened(engine) as backend:
            np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
        engine[1].check_races()

    @every_generation
    def test_batches_overlap_and_come_back_in_order(self, engine, truth):
        batches = [frames_of(1 + index % 3, index) for index in range(9)]
        with opened(engine, num_slots=3) as backend:
            tickets, results = [], []
            for batch in batches:
                if len(tickets) == 3:
                    results.append(backend.collect(tickets.pop(0))[0].copy())
                tickets.append(backend.submit(batch))
            results += [backend.collect(ticket)[0].copy() for ticket in tickets]
        for batch, labels in zip(batches, results, strict=True):
            np.testing.assert_array_equal(labels, truth(batch))

    @every_generation
    def test_it_replays_graphs(self, engine, truth):
        with opened(engine, num_slots=1) as backend:
            for seed in range(5):
                batch = frames_of(2, seed)
                np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
        assert (engine[1].captures, engine[1].launches) == (1, 4)

    @every_generation
    def test_each_slot_and_size_has_a_context_and_all_share_the_activations(self, engine, truth):
        state = engine[2].state
        state.contexts = state.own_activations = 0
        with opened(engine, num_slots=3) as backend:
            for seed in range(12):
                batch = frames_of(1 + seed % 2, seed)
                np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
            assert backend.notes == ()
            assert len(state.streams) == 1
        assert (state.contexts, state.own_activations) == (6, 0)

    @every_generation
    def test_a_context_without_memory_is_told(self, engine, monkeypatch):
        for name in ("create_execution_context", "create_execution_context_without_device_memory"):
            monkeypatch.setattr(engine[2].ICudaEngine, name, lambda *_: None, raising=False)
        with pytest.raises(CudaError, match="an execution context cannot be created") as caught:
            opened(engine)
        assert "smaller --batch" in caught.value.hint

    @every_generation
    def test_a_version_compatible_engine_may_run_the_code_that_it_holds(self, engine, truth):
        path, _, _ = engine
        plan, record = path.read_bytes(), read_record(path)
        length = int.from_bytes(plan[4:8], "little")
        header = {**json.loads(plan[8 : 8 + length]), "version_compatible": True}
        text = json.dumps(header).encode()
        plan = plan[:4] + len(text).to_bytes(4, "little") + text + plan[8 + length :]
        record = replace(record, plan_sha256=hashlib.sha256(plan).hexdigest())
        write_engine(path, plan, record)
        with pytest.raises(EngineMismatch, match="Host code is not allowed"):
            opened(engine)
        build = {**record.build, "version_compatible": True}
        write_engine(path, plan, replace(record, build=build))
        engine[1].closed = False
        with opened(engine) as backend:
            np.testing.assert_array_equal(backend.infer(frames_of(1))[0], truth(frames_of(1)))

    @pytest.mark.parametrize("engine", ["8.6.1"], indirect=True)
    def test_an_engine_with_one_context_runs_without_graphs_and_says_so(
        self, engine, truth, monkeypatch
    ):
        monkeypatch.setattr("tests.fake_trt.shares_profile", lambda *_: False)
        with opened(engine, num_slots=3) as backend:
            for seed in range(6):
                batch = frames_of(1 + seed % 2, seed)
                np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
            (note,) = backend.notes
        assert "without CUDA graphs" in note
        assert "build-engine small.onnx" in note
        assert engine[1].captures == 0

    def test_two_streams_in_the_shared_activations_are_refused(self, engine):
        with opened(engine) as backend, engine[1].current():
            backend.infer(frames_of(1))
            other = engine[1].new_stream()
            with pytest.raises(AssertionError, match="shared activations"):
                backend._enqueue(backend.ring._slots[0], 1, other)
            other.free()

    @pytest.mark.parametrize("at", [1, 4])
    def test_a_failed_capture_is_noted(self, engine, truth, at):
        engine[1].capture_fails = {at}
        with opened(engine, num_slots=2) as backend:
            for seed in range(12):
                batch = frames_of(1 + seed % 3, seed)
                np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
            (note,) = backend.notes
        assert "without a CUDA graph: cuStreamEndCapture" in note

    def test_results_of_infer_are_the_callers_own(self, engine):
        with opened(engine, num_slots=1) as backend:
            first = backend.infer(frames_of(1, 1))[0]
            kept = first.copy()
            backend.infer(frames_of(1, 2))
            np.testing.assert_array_equal(first, kept)

    def test_it_says_what_it_is(self, engine):
        with opened(engine) as backend:
            assert (backend.name, backend.precision) == ("tensorrt", "fp32")
            assert backend.device == "NVIDIA Fake 3060 (fake)"
            assert backend.card.batch == (1, 1, 8)

    def test_a_segmenter_runs_it_on_frames_of_any_size(self, engine):
        with Segmenter(opened(engine)) as segmenter:
            frames = np.random.default_rng(0).integers(0, 256, (11, 40, 60, 3), np.uint8)
            assert segmenter.segment(frames).shape == (11, 40, 60)

    @pytest.mark.parametrize("count", [0, 9])
    def test_a_batch_outside_the_profile_is_refused(self, engine, count):
        with (
            opened(engine) as backend,
            pytest.raises(InvalidInput, match=f"batch of {count} frames"),
        ):
            backend.infer(frames_of(count))

    def test_a_batch_below_the_profile_is_refused_and_the_ring_stays_usable(self, engine, truth):
        path, device, _ = engine
        card = replace(read_record(path).card, batch=BatchRange(2, 2, 8))
        with TensorRtBackend(path, card, device=device) as backend:
            slot = backend.acquire()
            slot.num_frames = 1
            for refused in (frames_of(1), slot):
                with pytest.raises(InvalidInput, match=r"batch of 1 frames, .* takes 2 to 8"):
                    backend.submit(refused)
            slot.release()
            np.testing.assert_array_equal(backend.infer(frames_of(2))[0], truth(frames_of(2)))

    def test_a_fixed_batch_refuses_fewer_frames(self, engine, make_artefact):
        path, device, _ = engine
        card = replace(read_record(path).card, batch=BatchRange(2, 2, 2))
        with (
            TensorRtBackend(path, card, device=device) as backend,
            pytest.raises(InvalidInput, match="batch of 1 frames, the artefact takes 2"),
        ):
            backend.submit(backend.acquire(), num_frames=1)

    def test_a_frame_of_the_wrong_size_is_refused(self, engine):
        with opened(engine) as backend, pytest.raises(InvalidInput, match="must be uint8"):
            backend.infer(np.zeros((1, 32, 32, 3), np.uint8))

    def test_everything_is_freed_and_close_may_be_called_twice(self, engine):
        backend = opened(engine)
        backend.infer(frames_of(1))
        backend.close()
        backend.close()
        assert not engine[1].alive
        assert engine[1].close_calls == 1

    def test_a_closed_backend_says_so(self, engine):
        backend = opened(engine)
        backend.close()
        with pytest.raises(InvalidInput, match="is closed"):
            backend.infer(frames_of(1))

    @pytest.mark.parametrize("at", [0, 3, 7])
    def test_out_of_memory_while_opening_frees_all(self, engine, at):
        engine[1].fail_allocation_at = at
        with pytest.raises(CudaError, match="memory is full"):
            opened(engine)
        assert not engine[1].alive
        assert engine[1].closed

    def test_a_gpu_lost_in_the_middle_is_told_and_the_rest_is_closed(self, engine):
        backend = opened(engine)
        backend.infer(frames_of(1))
        engine[1].lost_after = 0
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
            backend.infer(frames_of(1))

    def test_an_engine_that_refuses_a_shape_is_told(self, engine):
        engine[2].state.run = lambda *_: False
        with (
            opened(engine) as backend,
            pytest.raises(CudaError, match="could not enqueue a batch of 1"),
        ):
            backend.infer(frames_of(1))

    def test_another_gpu_is_refused_with_the_rebuild(self, engine):
        engine[1].sm = (6, 1)
        with pytest.raises(
            EngineMismatch, match=r"is for compute capability 8\.6, .* has 6\.1"
        ) as caught:
            opened(engine)
        assert caught.value.hint == "build it again: esnet-export build-engine small.onnx --fp32"
        assert engine[1].closed

    def test_another_tensorrt_is_refused_before_it_is_asked(self, engine, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("11.4.0"))
        with pytest.raises(
            EngineMismatch, match=r"was built by tensorrt 10\.3\.0, here is tensorrt 11\.4\.0"
        ):
            opened(engine)

    def test_an_edited_engine_is_refused_before_it_is_loaded(self, engine):
        path, _, module = engine
        path.write_bytes(path.read_bytes() + b"x")
        loaded = module.state.loaded
        with pytest.raises(EngineMismatch, match="the sha256 differs"):
            opened(engine)
        assert module.state.loaded == loaded

    def test_another_precision_cannot_be_had(self, engine):
        with pytest.raises(InvalidInput, match="cannot run fp16 on this engine"):
            opened(engine, precision="fp16")

    def test_without_a_gpu_the_reason_is_told(self, engine, no_cuda_libraries):
        path, _, _ = engine
        with pytest.raises(BackendUnavailable, match=r"pycuda: .*pycuda.*; cuda-bindings: .*cuda"):
            open_backend(path)

    def test_an_engine_names_the_backends_that_do_not_run_it(self, engine):
        with pytest.raises(InvalidInput, match=r"does not run .*, an engine of tensorrt"):
            open_backend(engine[0], "onnxruntime")

    def test_an_onnx_file_is_not_run_as_an_engine(self, make_artefact):
        with pytest.raises(InvalidInput, match="'tensorrt' runs engines") as caught:
            open_backend(make_artefact(), "tensorrt")
        assert "build-engine" in caught.value.hint


RTX = "rtx 1.7.1"


@pytest.fixture
def rtx_engine(make_artefact, tmp_path, monkeypatch):
    """An engine of TensorRT-RTX, and the device to run it on."""
    module = fake_tensorrt(RTX)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card = ModelCard.from_file(make_artefact())
    plan = build_plan(module, make_artefact().read_bytes(), card.batch)
    record = EngineRecord(
        card=card,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        onnx={},
        tensorrt={"kind": "tensorrt-rtx", "version": RTX},
        target={"sms": ["8.6"]},
        precision={},
        profile=card.batch,
        kernels={},
        build={"command": "esnet-export build-engine small.onnx"},
    )
    path = tmp_path / "small.engine"
    write_engine(path, plan, record)
    device = FakeDevice()
    module.state.run = runner(device)
    return path, device, module


class TestTensorRtRtx:
    def test_it_captures_once_for_each_slot_and_size(self, rtx_engine, truth):
        with opened(rtx_engine, num_slots=3) as backend:
            for seed in range(18):
                batch = frames_of(1 + seed % 2, seed)
                np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
            assert backend.notes == ()
        state = rtx_engine[2].state
        assert (state.contexts, state.recaptures, state.own_activations) == (6, 6, 0)
        assert rtx_engine[1].captures == 0

    def test_its_cache_is_read_while_the_engine_lives_and_the_engine_is_freed(
        self, rtx_engine, monkeypatch
    ):
        module, alive = rtx_engine[2], []
        deserialize, create = (
            module.Runtime.deserialize_cuda_engine,
            module.ICudaEngine.create_runtime_config,
        )
        engines, configs = [], []

        def load(runtime, plan):
            engine = deserialize(runtime, plan)
            engines.append(weakref.ref(engine))
            return engine

        def configure(engine):
            config = create(engine)
            configs.append(weakref.ref(config))
            return config

        def serialize(cache):
            alive.append(engines[0]() is not None)
            return b"kernels"

        monkeypatch.setattr(module.Runtime, "deserialize_cuda_engine", load)
        monkeypatch.setattr(module.ICudaEngine, "create_runtime_config", configure)
        monkeypatch.setattr(module.IRuntimeCache, "serialize", serialize)
        backend = opened(rtx_engine)
        backend.close()
        assert alive == [True]
        assert (engines[0](), configs[0]()) == (None, None)

    def test_another_precision_is_refused_in_its_name(self, rtx_engine):
        with pytest.raises(InvalidInput, match="tensorrt-rtx cannot run int8 on this engine"):
            opened(rtx_engine, precision="int8")

    def test_its_runtime_cache_is_kept(self, rtx_engine, tmp_path):
        with opened(rtx_engine) as backend:
            backend.infer(frames_of(1))
        assert [file.read_bytes() for file in tmp_path.rglob("*.runtime-cache")] == [b"kernels"]


class FakeOrt:
    """ONNX Runtime with a CUDA provider whose memory is the fake GPU's."""

    __version__ = "1.31.1"
    SessionOptions = ort.SessionOptions

    class RunOptions:
        def __init__(self):
            self.entries = {}

        def add_run_config_entry(self, key, value):
            self.entries[key] = value

    def __init__(
        self,
        device,
        *,
        falls_back=False,
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    ):
        self.device, self.falls_back, self.providers = device, falls_back, providers
        self.runs = []
        self.problem = self.run_problem = None

    def get_available_providers(self):
        return list(self.providers)

    def InferenceSession(self, path, sess_options, providers, enable_fallback):
        assert enable_fallback == 0
        if self.problem:
            raise RuntimeError(self.problem)
        return FakeSession(self, path, providers)


class FakeSession:
    def __init__(self, fake, path, providers):
        ((self.provider, self.options),) = providers
        self.fake = fake
        self.real = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return (
            ["CPUExecutionProvider"]
            if self.fake.falls_back
            else [self.provider, "CPUExecutionProvider"]
        )

    def io_binding(self):
        return FakeBinding()

    def run_with_iobinding(self, binding, options):
        assert options.entries == {"disable_synchronize_execution_providers": "1"}
        if self.fake.run_problem:
            raise RuntimeError(self.fake.run_problem)
        device, (_, shape, frames) = self.fake.device, binding.inputs["frames"]
        self.fake.runs.append(shape)

        def kernel():
            batch = device.at(frames)[: int(np.prod(shape))].reshape(shape)
            for (name, (_, _, address)), array in zip(
                binding.outputs.items(),
                self.real.run(list(binding.outputs), {"frames": batch}),
                strict=True,
            ):
                assert name
                device.at(address)[: array.nbytes] = array.view(np.uint8).ravel()

        written = [address for _, _, address in binding.outputs.values()]
        device.launch(kernel, (frames,), written, int(self.options["user_compute_stream"]))


class FakeBinding:
    def __init__(self):
        self.inputs, self.outputs = {}, {}

    def bind_input(self, name, device, index, dtype, shape, address):
        assert (device, index) == ("cuda", 0)
        self.inputs[name] = dtype, shape, address

    def bind_output(self, name, device, index, dtype, shape, address):
        assert (device, index) == ("cuda", 0)
        self.outputs[name] = dtype, shape, address


@pytest.fixture
def use_ort(monkeypatch):
    """Put a fake ONNX Runtime in place, and only the GPU build of it."""

    def use(**settings):
        device = FakeDevice()
        fake = FakeOrt(device, **settings)
        for module in (onnxruntime, onnxruntime_cuda):
            monkeypatch.setattr(module, "ort", fake)
        monkeypatch.setattr(
            onnxruntime_cuda, "_is_installed", lambda name: name == "onnxruntime-gpu"
        )
        return fake

    return use


def cuda_session(fake, path, **settings) -> OnnxRuntimeCudaBackend:
    return OnnxRuntimeCudaBackend(path, ModelCard.from_file(path), device=fake.device, **settings)


class TestOnnxRuntimeCuda:
    @pytest.mark.parametrize("count", [1, 5, 8])
    def test_labels_are_those_of_the_artefact(self, use_ort, make_artefact, truth, count):
        fake, batch = use_ort(), frames_of(count)
        with cuda_session(fake, make_artefact()) as backend:
            np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
        fake.device.check_races()

    def test_batches_overlap(self, use_ort, make_artefact, truth):
        fake = use_ort()
        with cuda_session(fake, make_artefact(), num_slots=3) as backend:
            batches = [frames_of(2, seed) for seed in range(3)]
            for batch in batches:
                backend.infer(batch)  # warm-up and capture
            waits = fake.device.synchronised
            tickets = [backend.submit(batch) for batch in batches]
            assert fake.device.synchronised == waits
            for ticket, batch in zip(tickets, batches, strict=True):
                np.testing.assert_array_equal(backend.collect(ticket)[0], truth(batch))

    def test_everything_is_freed(self, use_ort, make_artefact):
        fake = use_ort()
        backend = cuda_session(fake, make_artefact())
        backend.infer(frames_of(1))
        backend.close()
        assert not fake.device.alive

    @pytest.mark.parametrize(
        ("problem", "kind", "hint"),
        [
            (
                "Failed to allocate memory for requested buffer of size 9",
                CudaError,
                "smaller batch",
            ),
            ("CUDA failure 700: an illegal memory access was encountered", CudaError, "restart it"),
            ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED", CudaError, "esnet-doctor"),
            (
                "Load model from small.onnx failed: Protobuf parsing failed",
                ModelFileError,
                "export",
            ),
        ],
    )
    def test_an_error_while_opening_says_whose_it_is(
        self, use_ort, make_artefact, problem, kind, hint
    ):
        fake = use_ort()
        fake.problem = problem
        with pytest.raises(kind, match=problem.partition(":")[0]) as caught:
            cuda_session(fake, make_artefact())
        assert hint in caught.value.hint
        assert not fake.device.alive

    def test_an_error_in_a_run_has_a_hint(self, use_ort, make_artefact):
        fake = use_ort()
        with cuda_session(fake, make_artefact()) as backend:
            fake.run_problem = "CUDA failure 2: out of memory ; GPU=0"
            with pytest.raises(CudaError, match="a batch of 3 failed: CUDA_ERROR_OUT_OF") as caught:
                backend.infer(frames_of(3))
        assert "free GPU memory" in caught.value.hint

    @pytest.mark.parametrize(("precision", "use_tf32"), [("fp32", "0"), ("fp16", "1")])
    def test_fp32_is_computed_without_tf32_on_the_given_gpu(
        self, use_ort, make_artefact, precision, use_tf32
    ):
        fake = use_ort()
        fake.device.index = 1
        with cuda_session(fake, make_artefact(precision=precision)) as backend:
            options = backend._session.options
        assert (options["use_tf32"], options["device_id"]) == (use_tf32, "1")

    def test_its_runs_are_replayed_as_graphs(self, use_ort, make_artefact, truth):
        fake = use_ort()
        with cuda_session(fake, make_artefact(), num_slots=1) as backend:
            for seed in range(4):
                batch = frames_of(2, seed)
                np.testing.assert_array_equal(backend.infer(batch)[0], truth(batch))
        assert (fake.device.captures, fake.device.launches) == (1, 3)

    def test_it_runs_at_the_artefacts_precision(self, use_ort, make_artefact):
        fake = use_ort()
        with cuda_session(fake, make_artefact(precision="fp16")) as backend:
            assert backend.precision == "fp16"
        with pytest.raises(InvalidInput, match="cannot run bf16"):
            cuda_session(use_ort(), make_artefact(), precision="bf16")

    def test_a_fall_back_to_the_cpu_is_an_error(self, use_ort, make_artefact):
        fake = use_ort(falls_back=True)
        with pytest.raises(BackendUnavailable, match="fell back to the CPU") as caught:
            cuda_session(fake, make_artefact())
        assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.hint
        assert not fake.device.alive

    def test_both_packages_together_are_named(self, use_ort, make_artefact, monkeypatch):
        fake = use_ort()
        monkeypatch.setattr(onnxruntime_cuda, "_is_installed", lambda name: True)
        with pytest.raises(BackendUnavailable, match="both installed and overwrite each other"):
            cuda_session(fake, make_artefact())

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
        report = bench_models([make_artefact()], load_frames(None, SIZE), options)
        (note,) = (line for line in notes(report) if "without a CUDA graph" in line)
        assert note.startswith(f"{report.results[0].model.name}: ")
