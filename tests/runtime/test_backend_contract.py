"""Contract that every backend must fulfil, whatever its library."""

import numpy as np
import pytest

from runtime.artefact.card import BatchRange
from runtime.backend import BACKENDS, open_backend
from runtime.errors import InvalidInput
from tests.contract import CHECKS

NAMES = [
    name for name, entry in BACKENDS.items() if entry.opens != "engine" and not entry.by_name_only
]
GOOD = np.zeros((1, 64, 128, 3), np.uint8)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backend(name, make_artefact):
    """Every backend in turn, each holding the same artefact: batch 1 to 8 of 64x128 frames."""
    with open_backend(make_artefact(), name) as opened:
        yield opened


def test_it_says_what_it_is(backend, name):
    assert (backend.name, backend.precision) == (name, "fp32")
    assert backend.device


def test_its_card_is_the_artefacts(backend, card):
    assert backend.card == card


def test_input_spec_tells_what_infer_takes(backend):
    assert backend.input.name == "frames"
    assert backend.input.dtype == np.uint8
    assert backend.input.shape == (None, 64, 128, 3)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="labels"),
        pytest.param({"outputs": ("labels", "confidence")}, id="labels+confidence"),
        pytest.param({"outputs": ("logits",)}, id="logits"),
        pytest.param({"outputs": ("logits",), "precision": "fp16"}, id="logits-fp16"),
        pytest.param({"input": "tensor"}, id="tensor-input"),
        pytest.param({"input": "tensor", "precision": "fp16"}, id="tensor-input-fp16"),
        pytest.param({"batch": BatchRange(2, 2, 2)}, id="fixed-batch"),
    ],
)
def test_results_are_what_the_output_specs_say(name, make_artefact, settings):
    with open_backend(make_artefact(**settings), name) as backend:
        batch = np.zeros([size or 2 for size in backend.input.shape], backend.input.dtype)
        results = backend.infer(batch)
        assert [result.dtype for result in results] == [spec.dtype for spec in backend.outputs]
        assert [result.shape for result in results] == [
            tuple(size or 2 for size in spec.shape) for spec in backend.outputs
        ]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        pytest.param(GOOD.astype(np.float32), r"uint8 .*got float32", id="wrong-dtype"),
        pytest.param(GOOD[0], r"\(N, 64, 128, 3\), got uint8 \(64, 128, 3\)", id="no-batch-axis"),
        pytest.param(GOOD[..., :1], r"got uint8 \(1, 64, 128, 1\)", id="one-channel"),
        pytest.param(GOOD[:, :56], r"got uint8 \(1, 56, 128, 3\)", id="wrong-height"),
        pytest.param(GOOD.transpose(0, 3, 1, 2), r"got uint8 \(1, 3, 64, 128\)", id="planes-first"),
        pytest.param(GOOD[:0], "batch of 0 frames, the artefact takes 1 to 8", id="no-frames"),
        pytest.param(GOOD.repeat(9, 0), "batch of 9 frames, the artefact takes 1 to 8", id="nine"),
    ],
)
def test_infer_says_what_it_expected_and_found(backend, batch, message):
    with pytest.raises(InvalidInput, match=message):
        backend.infer(batch)


def test_a_batch_above_the_range_gets_the_export_option_that_allows_it(backend):
    with pytest.raises(InvalidInput) as refusal:
        backend.infer(GOOD.repeat(9, 0))
    assert refusal.value.hint == "export with --batch 1:9:9"


@pytest.mark.parametrize("size", [1, 2, 8])
def test_every_batch_size_of_the_range_runs(backend, size):
    (labels,) = backend.infer(noise(size, 64, 128, 3))
    assert labels.shape == (size, 64, 128)


def test_a_fixed_batch_takes_no_other_size(name, make_artefact):
    with (
        open_backend(make_artefact(batch=BatchRange(2, 2, 2)), name) as backend,
        pytest.raises(InvalidInput, match=r"\(2, 64, 128, 3\), got uint8 \(1, 64, 128, 3\)"),
    ):
        backend.infer(GOOD)


def test_a_view_that_is_not_contiguous_gives_what_its_copy_gives(backend):
    view = noise(1, 64, 256, 3)[:, :, ::-2]
    np.testing.assert_array_equal(backend.infer(view)[0], backend.infer(view.copy())[0])


def test_a_read_only_batch_is_taken_and_left_as_it_is(backend):
    batch = noise(1, 64, 128, 3)
    before = batch.copy()
    batch.flags.writeable = False
    backend.infer(batch)
    np.testing.assert_array_equal(batch, before)


def test_results_are_fresh_and_the_callers_own(name, make_artefact):
    path = make_artefact(outputs=("labels", "confidence"))
    with open_backend(path, name) as backend:
        first = backend.infer(noise(1, 64, 128, 3, seed=1))
        kept = [result.copy() for result in first]
        second = backend.infer(noise(1, 64, 128, 3, seed=2))
        for old, copy, new in zip(first, kept, second, strict=True):
            assert not np.shares_memory(old, new)
            np.testing.assert_array_equal(old, copy)
            new[:] = 1


def test_results_outlive_the_backend(name, make_artefact):
    with open_backend(make_artefact(), name) as backend:
        (labels,) = backend.infer(GOOD)
        kept = labels.copy()
    del backend
    np.testing.assert_array_equal(labels, kept)


def test_close_may_be_called_twice(name, make_artefact):
    backend = open_backend(make_artefact(), name)
    backend.close()
    backend.close()


def test_a_closed_backend_says_so(name, make_artefact):
    with open_backend(make_artefact(), name) as backend:
        pass
    with pytest.raises(InvalidInput, match=f"the {name} backend is closed"):
        backend.infer(GOOD)


def test_a_number_of_threads_does_not_change_the_labels(backend, name, make_artefact):
    batch = noise(1, 64, 128, 3)
    with open_backend(make_artefact(), name, threads=1) as single:
        np.testing.assert_array_equal(single.infer(batch)[0], backend.infer(batch)[0])


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_refused(name, make_artefact, threads):
    with pytest.raises(InvalidInput, match=f"threads must be at least 1, got {threads}"):
        open_backend(make_artefact(), name, threads=threads)


def test_the_precision_of_the_artefact_may_be_asked_for(name, make_artefact):
    with open_backend(make_artefact(), name, precision="fp32") as backend:
        assert backend.precision == "fp32"


def test_a_precision_that_cannot_run_is_refused_with_those_that_can(name, make_artefact):
    with pytest.raises(InvalidInput, match=f"{name} cannot run int3 on .*, it offers fp32") as no:
        open_backend(make_artefact(), name, precision="int3")
    assert "--precision fp32" in no.value.hint


@pytest.fixture(scope="module")
def batches_and_results(backend):
    batches = [noise(1 + seed % 3, 64, 128, 3, seed=seed) for seed in range(12)]
    return batches, [backend.infer(batch) for batch in batches]


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "closing"])
def test_batches_in_flight(backend, batches_and_results, check):
    CHECKS[check](backend, *batches_and_results)


def test_closing_with_batches_in_flight(name, make_artefact, batches_and_results):
    with open_backend(make_artefact(), name) as backend:
        CHECKS["closing"](backend, *batches_and_results)
