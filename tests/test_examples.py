"""The examples in the docstrings of the most used functions work."""

import doctest
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from esnet.labels import CAMVID
from runtime.artefact.card import ModelCard
from runtime.output.images import write_image

MODULES = (
    "runtime.artefact.card",
    "runtime.backend",
    "runtime.media.frames",
    "runtime.media.overlay",
    "runtime.media.sources",
    "runtime.segmenter",
    "esnet.checkpoint",
    "esnet.labels",
    "esnet.metrics",
    "export.to_onnx",
)


@pytest.mark.parametrize("name", MODULES)
def test_the_example_of_a_module_works(name, make_artefact, frame, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(make_artefact(), "model.onnx")
    Path("photos").mkdir()
    for stem in "ab":
        write_image(Path("photos", f"{stem}.png"), frame)
    names = {"frame": frame, "Path": Path, "ModelCard": ModelCard, "CAMVID": CAMVID}
    results = doctest.testmod(import_module(name), extraglobs=names)
    assert results.attempted >= 1
    assert results.failed == 0
