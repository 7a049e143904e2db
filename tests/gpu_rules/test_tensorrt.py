"""The TensorRT backend: contexts, activations, graphs, caches and refusals; see ``fakes``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.artefact.card import BatchRange
from runtime.artefact.engine_file import read_record, write_engine
from runtime.errors import CudaError, EngineMismatch, InvalidInput
from tests import fake_trt
from tests.cuda_stub import stub
from tests.fake_trt import GENERATIONS
from tests.gpu_rules.fakes import (
    AMPERE,
    RTX,
    frames_of,
    gives_its_results,
    open_engine,
    use_tensorrt,
)
from tests.gpu_rules.rules import on_stub, untyped

every_generation = pytest.mark.parametrize("generation", GENERATIONS)


@every_generation
@on_stub(environment=AMPERE, once=True)
def test_each_slot_and_size_has_a_context_and_all_share_the_activations(
    library, engines, generation
):
    state = use_tensorrt(generation).state
    with open_engine(library, f"{engines}/{generation}.engine", num_slots=3) as backend:
        for seed in range(12):
            assert gives_its_results(backend, frames_of(1 + seed % 2, seed))
        assert backend.notes == ()
    assert (state.contexts, state.own_activations, len(state.streams)) == (6, 0, 1)


@every_generation
@on_stub(environment=AMPERE, once=True)
def test_a_context_without_memory_is_told(library, engines, generation):
    module = use_tensorrt(generation)
    for name in ("create_execution_context", "create_execution_context_without_device_memory"):
        setattr(module.ICudaEngine, name, lambda *_: None)
    with pytest.raises(CudaError, match="an execution context cannot be created") as caught:
        open_engine(library, f"{engines}/{generation}.engine")
    assert "smaller --batch" in caught.value.hint


@every_generation
@on_stub(environment=AMPERE, once=True)
def test_a_version_compatible_engine_may_run_the_code_that_it_holds(
    library, engines, tmp_path, generation
):
    use_tensorrt(generation)
    path = Path(engines) / f"{generation}.engine"
    plan, record = path.read_bytes(), read_record(path)
    length = int.from_bytes(plan[4:8], "little")
    header = {**json.loads(plan[8 : 8 + length]), "version_compatible": True}
    text = json.dumps(header).encode()
    plan = plan[:4] + len(text).to_bytes(4, "little") + text + plan[8 + length :]
    record = replace(record, plan_sha256=hashlib.sha256(plan).hexdigest())
    path = Path(tmp_path) / "small.engine"
    write_engine(path, plan, record)
    with pytest.raises(EngineMismatch, match="Host code is not allowed"):
        open_engine(library, path)
    write_engine(path, plan, replace(record, build={**record.build, "version_compatible": True}))
    with open_engine(library, path) as backend:
        assert gives_its_results(backend, frames_of(1))


@on_stub(environment=AMPERE, once=True)
def test_an_engine_with_one_context_runs_without_graphs_and_says_so(library, engines):
    use_tensorrt("8.6.1")
    fake_trt.shares_profile = lambda *_: False
    with open_engine(library, f"{engines}/8.6.1.engine", num_slots=3) as backend:
        for seed in range(6):
            assert gives_its_results(backend, frames_of(1 + seed % 2, seed))
        (note,) = backend.notes
    assert "without CUDA graphs" in note
    assert "build-engine small.onnx" in note
    assert stub.calls("cuStreamBeginCapture") == 0


@on_stub(environment=AMPERE, once=True)
def test_two_streams_in_the_shared_activations_are_refused(library, engines):
    use_tensorrt("10.3.0")
    with open_engine(library, f"{engines}/10.3.0.engine") as backend, backend._cuda.current():
        backend.infer(frames_of(1))
        other = backend._cuda.new_stream()
        with pytest.raises(AssertionError, match="shared activations"):
            backend._enqueue(backend.ring._slots[0], 1, other)
        other.free()


@on_stub(environment=AMPERE, once=True, log="cuGraphInstantiate")
def test_a_failed_capture_is_noted(library, engines):
    use_tensorrt("10.3.0")
    stub.fail("cuGraphInstantiateWithFlags")
    with open_engine(library, f"{engines}/10.3.0.engine", num_slots=2) as backend:
        for seed in range(12):
            assert gives_its_results(backend, frames_of(1 + seed % 3, seed))
        (note,) = backend.notes
    assert "batches of 1 run without a CUDA graph: cuGraphInstantiate" in note


@on_stub(environment=AMPERE, once=True)
def test_it_says_what_it_is(library, engines):
    use_tensorrt("10.3.0")
    with open_engine(library, f"{engines}/10.3.0.engine") as backend:
        assert (backend.name, backend.precision) == ("tensorrt", "fp32")
        assert backend.device == f"NVIDIA GeForce RTX 3090, cuda:0 ({library})"
        assert backend.card.batch == (1, 1, 8)


@on_stub(environment=AMPERE, once=True)
def test_a_batch_below_the_profile_is_refused_and_the_ring_stays_usable(library, engines):
    use_tensorrt("10.3.0")
    path = f"{engines}/10.3.0.engine"
    card = replace(read_record(Path(path)).card, batch=BatchRange(2, 2, 8))
    with open_engine(library, path, card=card) as backend:
        slot = backend.acquire()
        slot.num_frames = 1
        for refused in (frames_of(1), slot):
            with pytest.raises(InvalidInput, match=r"batch of 1 frames, .* takes 2 to 8"):
                backend.submit(refused)
        slot.release()
        assert gives_its_results(backend, frames_of(2))


@on_stub(environment=AMPERE, once=True)
def test_an_engine_that_refuses_a_shape_is_told(library, engines):
    use_tensorrt("10.3.0").state.run = lambda *_: False
    with (
        open_engine(library, f"{engines}/10.3.0.engine") as backend,
        pytest.raises(CudaError, match="could not enqueue a batch of 1"),
    ):
        backend.infer(frames_of(1))


@on_stub(environment={"CUDA_STUB_SM": "61"})
def test_an_engine_for_another_gpu_is_refused_with_the_rebuild(library, engines):
    use_tensorrt("10.3.0")
    with pytest.raises(EngineMismatch, match=r"8\.6.*6\.1") as caught:
        open_engine(library, f"{engines}/10.3.0.engine")
    assert untyped(caught.value) is None
    assert caught.value.hint == "build it again: esnet-export build-engine small.onnx"


@on_stub(environment={"CUDA_STUB_SM": "61"}, once=True)
def test_a_gtx_10xx_runs_an_engine_with_the_bindings_alone(library, engines):
    sys.modules["tensorrt"] = None  # type: ignore[assignment]
    use_tensorrt("8.6.1", name="tensorrt_bindings", sm=(6, 1))
    with open_engine(library, f"{engines}/gtx10xx.engine") as backend:
        assert gives_its_results(backend, frames_of(3))


@on_stub(environment=AMPERE, once=True)
def test_rtx_captures_once_for_each_slot_and_size(library, engines):
    state = use_tensorrt(RTX, name="tensorrt_rtx").state
    with open_engine(library, f"{engines}/{RTX}.engine", num_slots=3) as backend:
        for seed in range(18):
            assert gives_its_results(backend, frames_of(1 + seed % 2, seed))
        assert backend.notes == ()
    assert (state.contexts, state.recaptures, state.own_activations) == (6, 6, 0)
    assert stub.calls("cuStreamBeginCapture") == 0


@on_stub(environment=AMPERE, once=True)
def test_rtx_reads_its_cache_while_the_engine_lives_and_frees_the_engine(
    library, engines, tmp_path
):
    os.environ["XDG_CACHE_HOME"] = tmp_path
    module = use_tensorrt(RTX, name="tensorrt_rtx")
    loaded, is_alive = [], []
    create = module.ICudaEngine.create_runtime_config

    def configure(engine):
        config = create(engine)
        loaded.extend([weakref.ref(engine), weakref.ref(config)])
        return config

    def serialize(cache):
        is_alive.append(loaded[0]() is not None)
        return b"kernels"

    module.ICudaEngine.create_runtime_config = configure
    module.IRuntimeCache.serialize = serialize
    open_engine(library, f"{engines}/{RTX}.engine").close()
    assert is_alive == [True]
    assert [item() for item in loaded] == [None, None]
    assert [file.read_bytes() for file in Path(tmp_path).rglob("*.runtime-cache")] == [b"kernels"]
