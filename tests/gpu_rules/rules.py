"""Shared parts: tests whose body runs in a child process, and a ring whose engine is a host function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runtime.artefact.tensors import TensorSpec
from runtime.cuda.device import CudaDevice, open_device
from runtime.cuda.ring import SlotLayout, SlotRing
from runtime.errors import CudaError, EsnetError
from tests.cuda_stub import stub

KINDS = ("cuda-bindings", "pycuda")
"""Kinds of environments that most tests run in."""
HEIGHT, WIDTH, MAX_BATCH = 6, 8, 4
UINT8 = np.dtype(np.uint8)
LAYOUT = SlotLayout(
    input=TensorSpec(name="frames", dtype=UINT8, shape=(None, HEIGHT, WIDTH, 3)),
    outputs=(
        TensorSpec(name="labels", dtype=UINT8, shape=(None, HEIGHT, WIDTH)),
        TensorSpec(name="confidence", dtype=UINT8, shape=(None, HEIGHT, WIDTH)),
    ),
    max_batch=MAX_BATCH,
)


def on_stub(
    body: Callable[..., Any] | None = None,
    *,
    log: str = "",
    left: bool = False,
    environment: dict[str, str] | None = None,
    once: bool = False,
    only: tuple[str, ...] = KINDS,
) -> Any:
    """Turn ``body(library, ...)`` into a test that runs in a child process over the stub.

    Args:
        body: Test body; it gets the name of the CUDA library, and its other parameters from pytest.
        log: Pattern of the lines that the stub may log; none by default.
        left: True if driver objects may stay alive.
        environment: Further CUDA_STUB_* variables.
        once: True to run with one seed alone.
        only: Kinds of environments to run in.
    """
    options = {"log": log, "left": left, "environment": environment, "once": once, "only": only}
    if body is None:
        return lambda function: on_stub(function, **options)

    def test(gpu: Any, **arguments: Any) -> None:
        gpu.check(test, arguments)

    parameters = list(inspect.signature(body).parameters.values())[1:]
    first = inspect.Parameter("gpu", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    test.__name__, test.__doc__ = body.__name__, body.__doc__
    test.__module__, test.__qualname__ = body.__module__, body.__qualname__
    vars(test).update(options, body=body)
    return test


def in_environments(*kinds: str, once: bool = False) -> Callable[[Any], Any]:
    """Choose the environments of a test that uses the fixture ``gpu`` itself; see ``on_stub``."""

    def choose(test: Any) -> Any:
        test.only, test.once = kinds or KINDS, once
        return test

    return choose


def wheels_layout(gpu: Any, folder: Path) -> Path:
    """Lay out the real onnxruntime-gpu and the stand-ins of CUDA's libraries as their wheels do."""
    (folder / "onnxruntime").symlink_to(gpu.site_packages / "onnxruntime")
    for name in (gpu.stub / "vendor").iterdir():
        library = folder / "nvidia" / ("cudnn" if "cudnn" in name.name else "cu13") / "lib"
        library.mkdir(parents=True, exist_ok=True)
        (library / name.name).symlink_to(name)
    return folder


def batch(count: int, seed: int = 0) -> np.ndarray:
    """Make a batch of noise, uint8 (count, HEIGHT, WIDTH, 3)."""
    shape = (count, HEIGHT, WIDTH, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute on the host what the engine computes: labels and confidence, uint8 (N, H, W)."""
    return frames[..., 0] + 1, frames[..., 2] ^ 0x5A


def is_right(views: tuple[np.ndarray, ...], frames: np.ndarray) -> bool:
    """Compare results with ``expected``."""
    return all(map(np.array_equal, views, expected(frames)))


def run_engine(
    source: int,
    targets: list[int],
    shape: tuple[int, ...],
    stream: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Enqueue the engine: a host function that calls ``check`` and reads and writes device memory.

    Raises:
        CudaError: The driver refused it.
    """

    def work() -> None:
        check()
        frames = stub.memory(source, shape)
        for target, values in zip(targets, expected(frames), strict=False):
            stub.memory(target, values.shape)[:] = values

    if status := stub.launch(stream, work):
        raise CudaError(f"cuLaunchHostFunc: {status}", hint="this is the test's own engine")


def enqueue(slot: Any, count: int, stream: Any) -> None:
    """Enqueue the engine for a slot of a ring."""
    targets = [buffer.address for buffer in slot.output_buffers]
    shape = (count, HEIGHT, WIDTH, 3)
    run_engine(slot.input_buffer.address, targets, shape, stream.handle)


@contextmanager
def opened(library: str, **settings: Any) -> Iterator[tuple[CudaDevice, SlotRing]]:
    """Open a device and a ring on it, and close both."""
    device = open_device(library)
    try:
        with SlotRing(device, LAYOUT, **{"enqueue": enqueue, **settings}) as ring:
            yield device, ring
    finally:
        device.close()


def drive(ring: SlotRing, num_batches: int = 40, *, count: int | None = None) -> int:
    """Keep a ring full, with batches of ``count`` frames or of every size, and count wrong results."""
    rng = np.random.default_rng(0)
    flying: list[tuple[np.ndarray, int]] = []
    wrong = 0
    for number in range(num_batches + ring.num_slots):
        if len(flying) == ring.num_slots or number >= num_batches:
            frames, ticket = flying.pop(0)
            wrong += not is_right(ring.collect(ticket), frames)
        if number < num_batches:
            frames = batch(count or int(rng.integers(1, MAX_BATCH + 1)), number)
            flying.append((frames, ring.submit(frames)))
    return wrong


def untyped(error: BaseException) -> str | None:
    """Say what is wrong with an error that is none of ours, or has no hint; ``None`` if it is fine."""
    if isinstance(error, EsnetError) and error.hint:
        return None
    return f"{type(error).__name__} without a type or hint of ours: {error}"
