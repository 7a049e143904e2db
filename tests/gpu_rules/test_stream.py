"""``Segmenter.stream`` on a GPU: driver calls and host copies for each frame."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import pytest

from runtime.segmenter import Segmenter
from tests.cuda_stub import stub
from tests.fake_trt import GENERATIONS
from tests.gpu_rules.fakes import AMPERE, SIZE, open_engine, use_tensorrt
from tests.gpu_rules.rules import expected, on_stub

pytestmark = pytest.mark.skipif(
    "GPU_RULES_ENVIRONMENTS" in os.environ, reason="needs OpenCV: make test runs it"
)
NEWEST = GENERATIONS[-1]
CALLS = (
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuGraphLaunch",
    "cuEventRecordWithFlags",
    "cuStreamWaitEvent",
    "cuEventSynchronize",
)
NUM_FRAMES = 48


def noise(size_hw: tuple[int, int]) -> list[np.ndarray]:
    """Make frames."""
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (NUM_FRAMES, *size_hw, 3), np.uint8))


@contextmanager
def passes_over_frames() -> Iterator[Counter[str]]:
    """Count the calls that write a frame on the host."""
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        for module, name in (("numpy", "copyto"), ("cv2", "resize"), ("cv2", "cvtColor")):
            real = getattr(__import__(module), name)

            def counted(*args, real=real, name=name, **options):
                counts[name] += 1
                return real(*args, **options)

            stack.enter_context(mock.patch(f"{module}.{name}", counted))
        yield counts


def run(library: str, path: str, *, size_hw=SIZE, color="rgb", batch=1) -> tuple[Counter, dict]:
    """Stream frames, and count passes over frames and driver calls once all graphs are captured."""
    frames = noise(size_hw)
    with Segmenter(open_engine(library, path), color=color) as segmenter:
        wait = {"batch": batch, "max_wait_ms": 10_000}
        for _ in segmenter.stream(frames[: 3 * batch], **wait):
            pass
        before = {name: stub.calls(name) for name in CALLS}
        with passes_over_frames() as passes:
            results = list(segmenter.stream(frames, **wait))
        calls = {name: (stub.calls(name) - before[name]) / NUM_FRAMES for name in CALLS}
    assert all(result.frame is frame for result, frame in zip(results, frames, strict=True))
    if size_hw == SIZE:
        rgb = np.stack(frames) if color == "rgb" else np.stack(frames)[..., ::-1]
        labels, confidence = expected(rgb)
        assert np.array_equal([result.labels for result in results], labels)
        assert np.array_equal([result.confidence for result in results], confidence)
    return passes, calls


@pytest.mark.parametrize(
    ("size_hw", "color", "passes"),
    [
        pytest.param(SIZE, "rgb", {"copyto": NUM_FRAMES}, id="rgb"),
        pytest.param(SIZE, "bgr", {"cvtColor": NUM_FRAMES}, id="bgr"),
        pytest.param((48, 96), "rgb", {"resize": 3 * NUM_FRAMES}, id="resized"),
    ],
)
@on_stub(environment=AMPERE, once=True)
def test_a_frame_is_written_to_page_locked_memory_in_one_pass(
    library, engines, size_hw, color, passes
):
    """The other two resizes are those of labels and confidence, back to the size of the frame."""
    use_tensorrt(NEWEST)
    found, _ = run(library, f"{engines}/{NEWEST}.engine", size_hw=size_hw, color=color)
    assert found == passes


@pytest.mark.parametrize("batch", [1, 4])
@on_stub(environment=AMPERE, once=True)
def test_batches_share_the_driver_calls(library, engines, batch):
    """9 calls a batch in flight: 1 copy in, 2 out, 1 launch, 3 events, 2 waits; then 1 wait of the host."""
    use_tensorrt(NEWEST)
    _, calls = run(library, f"{engines}/{NEWEST}.engine", batch=batch)
    assert calls["cuGraphLaunch"] == calls["cuEventSynchronize"] == 1 / batch
    assert sum(calls.values()) <= 10 / batch
