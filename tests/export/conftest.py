"""Shared fixtures: networks, a checkpoint, and running a graph without optimisations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from esnet.model import ESNet
from export.plan import ExportPlan, graph_from_network
from tests.conftest import SMALL_HW, random_network


@pytest.fixture(scope="session")
def make_network() -> Callable[..., ESNet]:
    """Make networks with random weights and non-trivial BN statistics, cached."""
    return cache(random_network)


@pytest.fixture(scope="session")
def make_graph(make_network) -> Callable[..., onnx.ModelProto]:
    """Make the graph of a small plan, cached."""

    @cache
    def make(family: str = "authors", *, num_classes: int = 11, **settings: object):
        plan = ExportPlan(**{"size_hw": SMALL_HW} | settings)
        return graph_from_network(make_network(family, num_classes=num_classes), plan)

    return make


@pytest.fixture(scope="session")
def checkpoint_path(make_network, tmp_path_factory) -> Path:
    """Checkpoint with random weights in the authors' layout, 11 classes, in a folder of its own."""
    path = tmp_path_factory.mktemp("checkpoint") / "street.pt"
    torch.save(make_network("authors").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    """Three noisy frames, RGB uint8 (3, 64, 128, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, *SMALL_HW, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def run_onnx() -> Callable[..., list[np.ndarray]]:
    """Run a graph with ONNX Runtime, all optimisations disabled."""

    def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options)
        return session.run(None, inputs)

    return run


@pytest.fixture(scope="session")
def torch_logits(make_network, frames) -> Callable[..., np.ndarray]:
    """Compute the logits of ``frames`` with torch, normalised as in training, cached."""

    @cache
    def score(
        family: str = "authors",
        *,
        num_classes: int = 11,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> np.ndarray:
        images_NHWC = (torch.from_numpy(frames) / 255 - torch.tensor(mean)) / torch.tensor(std)
        with torch.inference_mode():
            network = make_network(family, num_classes=num_classes)
            return network(images_NHWC.permute(0, 3, 1, 2)).numpy()

    return score


@pytest.fixture(scope="session")
def assert_same_labels() -> Callable[[np.ndarray, np.ndarray], None]:
    """Assert that every label has the largest logit, within rounding."""

    def check(labels_NHW: np.ndarray, logits_NKHW: np.ndarray) -> None:
        best_NHW = logits_NKHW.max(1)
        chosen_NHW = np.take_along_axis(logits_NKHW, labels_NHW[:, None].astype(np.int64), 1)[:, 0]
        assert (best_NHW - chosen_NHW).max() <= 1e-5 * np.abs(logits_NKHW).max()

    return check


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    """Wrap nodes into a checked model with float inputs and outputs."""

    def make(
        nodes: list[onnx.NodeProto],
        *,
        inputs: dict[str, list[int | str]],
        outputs: dict[str, list[int | str]],
        constants: dict[str, np.ndarray] | None = None,
        opset: int = 17,
    ) -> onnx.ModelProto:
        def infos(shapes: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
            kind = onnx.TensorProto.FLOAT
            return [
                helper.make_tensor_value_info(name, kind, dims) for name, dims in shapes.items()
            ]

        arrays = [numpy_helper.from_array(value, key) for key, value in (constants or {}).items()]
        graph = helper.make_graph(nodes, "small", infos(inputs), infos(outputs), arrays)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    return make
