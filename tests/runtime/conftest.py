"""Shared fixtures of the runtime tests: cards, images, videos, and environments without a library."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from export.metadata import with_card
from runtime.artefact.card import ModelCard
from runtime.machine.cuda_driver import CudaListing

Hide = Callable[..., None]
Draw = Callable[..., Path]


@pytest.fixture
def card(make_artefact: Callable[..., Path]) -> ModelCard:
    """The card of the small artefact: 64x128, CamVid's 11 classes."""
    return ModelCard.from_file(make_artefact())


@pytest.fixture(scope="session")
def identity_model() -> onnx.ModelProto:
    """The smallest ONNX model; it has no card."""
    edges = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", edges[:1], edges[1:]))


@pytest.fixture(scope="session")
def small_model_bytes(identity_model: onnx.ModelProto, make_artefact: Callable[..., Path]) -> bytes:
    """An ONNX file of about a kilobyte that ends in a real card."""
    card = ModelCard.from_file(make_artefact())
    return with_card(identity_model, card).SerializeToString()


@pytest.fixture(scope="session")
def save_onnx(
    identity_model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, str]], Path]:
    """Write an ONNX file with these metadata, over the one before."""
    path = tmp_path_factory.mktemp("metadata") / "model.onnx"

    def save(entries: dict[str, str]) -> Path:
        model = onnx.ModelProto.FromString(identity_model.SerializeToString())
        onnx.helper.set_model_props(model, entries)
        onnx.save(model, path)
        return path

    return save


@pytest.fixture
def hide_library(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Make libraries look as if they were not installed."""
    find_spec = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, *rest: None if name in names else find_spec(name, *rest),
        )

    return hide


@pytest.fixture
def no_cuda_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make PyCUDA and cuda-bindings look as if they were not installed, on a machine with a driver."""
    monkeypatch.setattr("runtime.cuda.device.list_cuda_gpus", lambda: CudaListing((), ""))
    for library, file in (("pycuda", "pycuda_device"), ("cuda.bindings", "bindings_device")):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"runtime.cuda.{file}", raising=False)


@pytest.fixture
def draw_image(tmp_path: Path) -> Draw:
    """Write an image of noise; the seed decides the noise."""

    def draw(name: str, *, size_hw: tuple[int, int] = (64, 128), seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), _noise(size_hw, seed))
        return path

    return draw


@pytest.fixture
def draw_video(tmp_path: Path) -> Draw:
    """Write an MP4 whose frames are plain greys, 20 brighter each time."""

    def draw(name: str, *, num_frames: int = 5, size_hw: tuple[int, int] = (64, 128)) -> Path:
        path = tmp_path / name
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(path), codec, 10.0, size_hw[::-1])
        for index in range(num_frames):
            writer.write(np.full((*size_hw, 3), 20 * index, np.uint8))
        writer.release()
        return path

    return draw


def _noise(size_hw: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
