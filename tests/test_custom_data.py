"""Own classes and own images: the commands of docs/custom-data.md, in order, on a toy dataset."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import yaml

from esnet.checkpoint import load_checkpoint
from esnet.data.scenes import street_scene
from esnet.labels import CAMVID, LabelSet, load_label_set
from runtime.artefact.card import ModelCard
from runtime.segmenter import Segmenter
from tests.conftest import ROOT

SIZE = (64, 128)
DOCUMENT = (ROOT / "docs" / "custom-data.md").read_text()
# The value of each CamVid class in the masks; others have the value 0, which is ignored.
VALUES = {"sky": 1, "pavement": 2, "tree": 4, "road": 5, "fence": 6, "building": 7, "car": 8}
SMALL = {
    "esnet-train": "--epochs 1 --batch-size 4 --crop 64x128 --accelerator cpu --precision fp32 --workers 0",
    "to-onnx": "--size 64x128",
    "quantize": "--count 4 --method max --max-miou-drop 100 --min-agreement 0",
    "esnet-eval": "--json eval.json",
    "esnet-segment": "--draw colors",
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def write_orchard(root: Path) -> LabelSet:
    """Write images, masks and the label set of the document."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    table = np.zeros(256, np.uint8)
    for name, value in VALUES.items():
        table[CAMVID.class_names.index(name)] = value
    for seed in range(6):
        scene = street_scene(SIZE, seed=seed)
        cv2.imwrite(str(root / "images" / f"{seed}.png"), scene.image[..., ::-1])
        cv2.imwrite(str(root / "masks" / f"{seed}.png"), table[scene.labels])
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    (root / "classes.yaml").write_text(text)
    return load_label_set(root / "classes.yaml")


def test_a_folder_becomes_an_int8_model_with_its_names_and_colours(tmp_path, invoke, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    label_set = write_orchard(tmp_path / "orchard")
    printed = {}
    for command in commands():
        name = command[0] if command[0] in SMALL else command[1]
        result = invoke(*command, *shlex.split(SMALL.get(name, "")), cwd=tmp_path)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        printed[name] = result.stdout

    assert "new head: 7 classes instead of 11" in printed["esnet-train"]
    assert load_checkpoint(tmp_path / "runs/orchard/best.ckpt").label_set == label_set
    assert yaml.safe_load(printed["inspect"]) == label_set.as_dict()
    card = ModelCard.from_file(tmp_path / "orchard-int8.onnx")
    assert (card.precision, card.classes) == ("int8", label_set.as_dict())

    reports = json.loads((tmp_path / "eval.json").read_text())["reports"]
    assert [tuple(report["iou"]) for report in reports] == [label_set.class_names] * 3
    num_pixels = sum(map(sum, reports[0]["confusion"]))
    assert 0.9 * SIZE[0] * SIZE[1] < num_pixels < SIZE[0] * SIZE[1]  # without what is ignored
    with Segmenter.open(tmp_path / "orchard-int8.onnx") as segmenter:
        frame = cv2.imread(str(tmp_path / "orchard/images/0.png"))[..., ::-1]
        expected = np.array(label_set.palette)[segmenter.segment(np.ascontiguousarray(frame))]
    drawn = cv2.imread(str(tmp_path / "overlays/0.png"))[..., ::-1]
    np.testing.assert_array_equal(drawn, expected)
