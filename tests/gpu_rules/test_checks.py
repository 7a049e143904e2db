"""The checks of ``tests/gpu`` over the stub: they pass there, and find what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.timing.latency import TimingConfig
from runtime.artefact.card import ModelCard
from runtime.backends.gpu import GpuBackend
from runtime.cuda.device import CudaDevice, Stream, open_device
from runtime.cuda.ring import Slot
from runtime.errors import CudaError
from tests.cuda_stub import stub
from tests.gpu import checks
from tests.gpu_rules.fakes import SIZE, frames_of
from tests.gpu_rules.rules import on_stub

pytestmark = pytest.mark.skipif(
    "GPU_RULES_ENVIRONMENTS" in os.environ, reason="needs OpenCV: make test runs it"
)
SIZE_HW = (8, 16)


def copy(target: int, source: int, num_bytes: int, stream: int, *, flip: int = 0) -> None:
    """Enqueue a device-to-device copy; ``flip`` inverts these bits of every byte."""

    def work() -> None:
        stub.memory(target, (num_bytes,))[:] = stub.memory(source, (num_bytes,)) ^ np.uint8(flip)

    if status := stub.launch(stream, work):
        raise CudaError(f"cuLaunchHostFunc: {status}")


def corrupt_copy(*arguments: int) -> None:
    copy(*arguments, flip=1)


@contextmanager
def opened(library: str) -> Iterator[CudaDevice]:
    device = open_device(library)
    try:
        yield device
    finally:
        device.close()


def ring_figures(
    device: CudaDevice, engine: Callable[..., None] = copy, *, batch: int = 1, use_graphs=False
) -> dict[str, Any]:
    """Check a ring and get what it recorded; an error is recorded as ``failure``."""
    figures: dict[str, Any] = {}
    settings = {"batch": batch, "use_graphs": use_graphs, "num_frames": 60, "size_hw": SIZE_HW}
    try:
        checks.check_ring(device, engine, figures.update, **settings)
    except AssertionError as error:
        figures["failure"] = str(error)
    return figures


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("use_graphs", [True, False])
@on_stub(once=True)
def test_the_ring_returns_every_frame(library, batch, use_graphs):
    with opened(library) as device:
        figures = ring_figures(device, batch=batch, use_graphs=use_graphs)
    assert "failure" not in figures
    assert (figures["frames"], figures["wrong_frames"]) == (100 * batch, 0)
    assert figures["memory_drift_bytes"] == 0
    assert 0 <= figures["overlap"] <= 1
    assert stub.calls("cuStreamBeginCapture") == (3 if use_graphs else 0)


@on_stub(once=True)
def test_a_corrupted_frame_is_found_and_recorded(library):
    with opened(library) as device:
        figures = ring_figures(device, corrupt_copy)
    assert "100 of 100 frames came back wrong" in figures["failure"]
    assert figures["wrong_frames"] == 100


@on_stub(once=True)
def test_growing_device_memory_is_found(library):
    free = iter(range(1 << 30, 0, -(16 << 20)))
    with opened(library) as device:
        device.memory_bytes = lambda: (next(free), 1 << 30)  # type: ignore[method-assign]
        figures = ring_figures(device)
    assert "free device memory changed by 16777216 bytes" in figures["failure"]


@on_stub(once=True)
def test_bytes_are_copied_there_and_back(library):
    with opened(library) as device:
        checks.check_copy(device, num_bytes=1000)


@on_stub(once=True)
def test_a_corrupted_copy_is_found(library):
    with opened(library) as device:
        device.copy_to_device = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match="bytes came back changed"):
            checks.check_copy(device, num_bytes=1000)


@on_stub(once=True)
def test_host_overhead_is_measured(library):
    with opened(library) as device:
        assert checks.measure_overhead(device, rounds=20, size_hw=SIZE_HW) > 0


class CopyBackend(GpuBackend):
    """A backend whose labels are the first bytes of a frame."""

    name = "copy"

    def _check(self, path: Path, precision: str | None) -> None:
        """Accept anything."""

    def _load(self, path: Path) -> None:
        self._run = checks.copy_engine(copy, SIZE[0] * SIZE[1])

    def _enqueue(self, slot: Slot, num_frames: int, stream: Stream) -> None:
        self._run(slot, num_frames, stream)


def open_copy(library: str, path: str) -> CopyBackend:
    card = ModelCard.from_file(Path(path))
    return CopyBackend(Path(path), card, device=open_device(library), timing=True)


FRAMES = list(frames_of(3))
LABELS = [frame.reshape(-1)[: SIZE[0] * SIZE[1]].reshape(SIZE) for frame in FRAMES]
QUICK = TimingConfig(
    warmup_cap_seconds=0.001, min_seconds=0, min_samples=5, block_seconds=0.01, cap_seconds=0.1
)


@on_stub(once=True)
def test_throughput_and_overlap_efficiency_are_recorded(library, half_file):
    figures: dict[str, Any] = {}
    with open_copy(library, half_file) as backend:
        checks.check_throughput(backend, FRAMES, LABELS, figures.update, timing=QUICK)
        assert not backend.ring._in_flight
    assert figures["frames_per_second_from_pinned_memory"] > 0
    assert figures["frames_per_second_from_arrays"] > 0
    rate = figures["frames_per_second_from_pinned_memory"] / checks.BATCH
    slowest_ms = max(figures["stages_alone_ms"])
    assert figures["overlap_efficiency"] == pytest.approx(rate * slowest_ms / 1e3, abs=0.01)
    assert figures["labels_equal_to_torch_fp32"] == 1.0


@on_stub(once=True)
def test_wrong_labels_of_a_timed_batch_are_found_and_recorded(library, half_file):
    figures: dict[str, Any] = {}
    wrong = [labels ^ 1 for labels in LABELS]
    with (
        open_copy(library, half_file) as backend,
        pytest.raises(AssertionError, match=r"0\.000% of the labels equal torch fp32"),
    ):
        checks.check_throughput(backend, FRAMES, wrong, figures.update, timing=QUICK)
    assert figures["labels_equal_to_torch_fp32"] == 0.0


@on_stub(once=True)
def test_labels_are_compared_with_torch_and_the_cpu(library, half_file):
    figures: dict[str, Any] = {}
    with open_copy(library, half_file) as backend:
        references = {"torch fp32": LABELS, "CPU artefact": LABELS}
        checks.check_labels(backend, FRAMES, references, figures.update)
        assert figures == dict.fromkeys(
            ("labels_equal_to_torch_fp32", "labels_equal_to_CPU_artefact"), 1.0
        )
        wrong = {**references, "CPU artefact": [LABELS[0] ^ 1, *LABELS[1:]]}
        problem = r"^66\.667% of the labels equal CPU artefact, not 99\.0%$"
        with pytest.raises(AssertionError, match=problem):
            checks.check_labels(backend, FRAMES, wrong, figures.update)


@on_stub(once=True, log="asynchronous copy from pageable memory: it waits")
def test_copies_are_measured_from_both_kinds_of_memory(library):
    figures: dict[str, Any] = {}
    with opened(library) as device:
        checks.measure_copies(device, figures.update, num_bytes=1000, rounds=3)
    assert list(figures) == [
        f"{memory}_{direction}_gb_per_s"
        for memory in ("pinned", "pageable")
        for direction in ("in", "out")
    ]
    assert stub.calls("cuMemcpyHtoDAsync") == stub.calls("cuMemcpyDtoHAsync") == 6


@on_stub(once=True)
def test_variants_are_timed_in_turns_and_their_labels_checked(library, half_file):
    figures: dict[str, Any] = {}
    frames = FRAMES * 3
    with open_copy(library, half_file) as first, open_copy(library, half_file) as second:
        variants = {"default": first, "other": second}
        checks.time_variants(variants, frames, LABELS * 3, figures.update, QUICK)
        assert [name for name in figures if name.startswith("batch")] == [
            *("batch_1, default", "batch_1, other", "batch_8, default", "batch_8, other")
        ]
        assert figures["batch_1, default"]["speed"] == 1.0
        assert figures["labels_equal_to_cpu_artefact, other"] == 1.0
        with pytest.raises(AssertionError, match="labels equal the CPU artefact"):
            checks.time_variants(
                variants, frames, [labels ^ 1 for labels in LABELS * 3], figures.update, QUICK
            )
