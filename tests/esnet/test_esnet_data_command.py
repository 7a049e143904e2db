"""``esnet-data``: what a dataset holds, what is wrong with it, and random splits."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from esnet.data.datasets import open_split
from esnet.labels import LabelSet

SIZE = (40, 60)
COLOURS = [(200, 0, 0), (0, 200, 0)]
SET = LabelSet(name="orchard", class_names=("path", "tree"), palette=tuple(COLOURS))


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def mask_of(share: float, left: int = 0, right: int = 1) -> np.ndarray:
    """A mask whose left part, a share of the width, has one value and whose right part has another."""
    values = np.full(SIZE, right, np.uint8)
    values[:, : round(share * SIZE[1])] = left
    return values


@pytest.fixture
def orchard(tmp_path: Path) -> Path:
    """Four images to train and one to validate, with the label set beside them."""
    root = tmp_path / "orchard"
    for split, count in (("train", 4), ("val", 1)):
        for index in range(count):
            write(root / "images" / split / f"{index}.jpg", np.full((*SIZE, 3), 90, np.uint8))
            write(root / "masks" / split / f"{index}.png", mask_of(0.25))
    (root / "classes.yaml").write_text(f"names: [path, tree]\npalette: {list(map(list, COLOURS))}")
    return root


@pytest.fixture
def check(invoke, orchard):
    """Check the orchard with its label set."""

    def run(*options):
        return invoke(
            "esnet-data", "check", orchard, "--label-set", orchard / "classes.yaml", *options
        )

    return run


class TestCheck:
    def test_sizes_and_class_shares_of_every_split_are_shown(self, check):
        done = check()
        assert done.returncode == 0, done.stderr
        words = " ".join(done.stdout.split())
        assert "4 train, 1 val sizes 5 of 40x60 classes 2, classes; pixels in %" in words
        assert "path 25.00 25.00 tree 75.00 75.00 (ignored) 0.00 0.00" in words
        assert "problem" not in done.stdout

    def test_one_split_is_checked_alone(self, check):
        assert ": 1 val\n" in check("--split", "val").stdout

    def test_a_class_that_is_lost_as_255_is_named(self, check, orchard):
        """Masks of tools that paint the foreground white."""
        for index in range(4):
            write(orchard / f"masks/train/{index}.png", mask_of(0.25, right=255))
        lines = check().stdout.splitlines()
        note = "note      train has no pixel of: tree; its masks hold value 255, which is ignored"
        assert [line.partition(": if it is a class")[0] for line in lines if "note" in line] == [
            note
        ]

    def test_a_class_that_does_not_occur_is_named(self, check, orchard):
        write(orchard / "masks/val/0.png", mask_of(1))
        done = check()
        assert "note      val has no pixel of: tree" in done.stdout
        assert done.returncode == 0

    @pytest.mark.parametrize(
        ("spoil", "problem"),
        [
            pytest.param(
                lambda root: write(root / "masks/train/1.png", mask_of(0.5, 9)),
                "value 9 belongs to no class: 1200 pixels in 1 masks of train, the first is "
                "{root}/masks/train/1.png",
                id="value",
            ),
            pytest.param(
                lambda root: (root / "masks/train/1.png").unlink(),
                "{root}/images/train/1.jpg has no mask {root}/masks/train/1.png",
                id="no-mask",
            ),
            pytest.param(
                lambda root: (root / "images/val/0.jpg").rename(root / "images/train/7.jpg"),
                "{root}/masks/val/0.png has no image",
                id="no-image",
            ),
            pytest.param(
                lambda root: write(root / "masks/train/1.png", mask_of(0.5)[:20]),
                "{root}/images/train/1.jpg is 40x60, its mask {root}/masks/train/1.png is 20x60",
                id="sizes",
            ),
            pytest.param(
                lambda root: (root / "images/train/1.jpg").write_bytes(b"no"),
                "{root}/images/train/1.jpg cannot be read as an image",
                id="damaged",
            ),
        ],
    )
    def test_everything_that_training_would_refuse_is_listed(self, check, orchard, spoil, problem):
        spoil(orchard)
        done = check()
        assert f"problem   {problem.format(root=orchard)}\n" in done.stdout
        assert done.returncode == 1

    def test_many_problems_are_counted(self, check, orchard):
        for index in range(30):
            write(orchard / f"images/train/more{index}.png", np.zeros((*SIZE, 3), np.uint8))
        assert check().stdout.count("problem ") == 21
        assert "problem   and 10 more" in check().stdout

    def test_without_classes_the_values_are_listed(self, invoke, orchard):
        write(orchard / "masks/train/1.png", mask_of(0.5, 40, 255))
        done = invoke("esnet-data", "check", orchard)
        words = " ".join(done.stdout.split())
        assert "value 0 18.75 25.00 value 1 56.25 75.00 value 40 12.50 0.00 (ignored)" in words
        assert done.returncode == 0

    def test_without_classes_the_colours_are_listed(self, invoke, orchard):
        for path in (orchard / "masks").rglob("*.png"):
            write(path, np.array(COLOURS, np.uint8)[mask_of(0.25)][..., ::-1])
        words = " ".join(invoke("esnet-data", "check", orchard).stdout.split())
        assert "colour 0 200 0 75.00 75.00 colour 200 0 0 25.00 25.00" in words

    def test_masks_that_were_saved_as_jpeg_are_recognised(self, invoke, orchard):
        noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
        write(orchard / "masks/train/1.png", noise)
        done = invoke("esnet-data", "check", orchard)
        assert done.stderr.startswith("error: the masks hold ")
        assert "not as JPEG" in done.stderr

    def test_the_contact_sheet_shows_images_masks_and_unknown_values(
        self, check, orchard, tmp_path
    ):
        write(orchard / "masks/train/1.png", mask_of(0.5, 9))
        check("--contact-sheet", tmp_path / "sheet.png")
        sheet = cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1]
        tile_height = SIZE[0] * 480 // (2 * SIZE[1])
        rows = sheet[: 3 * tile_height].reshape(3, tile_height, 2, 480, 3)
        first, second = rows[0, tile_height // 2, 0], rows[0, tile_height // 2, 1]
        blend = [0.4 * 90 + 0.6 * np.array(colour) for colour in (*COLOURS, (255, 0, 255))]
        np.testing.assert_allclose(first[100], (90, 90, 90), atol=2)
        np.testing.assert_allclose(first[250], blend[0], atol=2)
        np.testing.assert_allclose(first[470], blend[1], atol=2)
        np.testing.assert_allclose(second[250], blend[2], atol=2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param(["--split", "dev"], "no split 'dev' in .*it has train, val", id="split"),
            pytest.param(
                ["--contact-sheet", "nowhere/a.png"], "output folder nowhere does not", id="folder"
            ),
            pytest.param(
                ["--contact-sheet", "a.txt"], "a.txt does not end in .png or .jpg", id="suffix"
            ),
        ],
    )
    def test_bad_input_is_one_line(self, check, options, message):
        done = check(*options)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 2

        assert re.match(f"error: .*{message}", done.stderr)


class TestSplit:
    @pytest.fixture
    def undivided(self, tmp_path):
        for index in range(10):
            write(tmp_path / "images" / f"a b{index}.png", np.zeros((*SIZE, 3), np.uint8))
            write(tmp_path / "masks" / f"a b{index}.png", mask_of(0.5))
        return tmp_path

    def test_the_lists_are_disjoint_and_are_read_as_splits(self, invoke, undivided):
        done = invoke("esnet-data", "split", undivided, "--val", 0.2, "--test", 0.1)
        assert done.returncode == 0, done.stderr
        splits = {
            name: {
                pair.image_path
                for pair in open_split("folder", undivided, name, label_set=SET).files
            }
            for name in ("train", "val", "test")
        }
        assert {name: len(paths) for name, paths in splits.items()} == {
            "train": 7,
            "val": 2,
            "test": 1,
        }
        assert len(set.union(*splits.values())) == 10

    def test_the_seed_decides(self, invoke, undivided, tmp_path):
        texts = []
        for number, seed in enumerate((0, 0, 1)):
            out = tmp_path / str(number)
            out.mkdir()
            invoke("esnet-data", "split", undivided, "--seed", seed, "-o", out)
            texts.append((out / "val.txt").read_text())
        assert texts[0] == texts[1] != texts[2]

    def test_an_image_more_moves_few_others(self, invoke, undivided, tmp_path):
        before, after = tmp_path / "before", tmp_path / "after"
        for out in (before, after):
            out.mkdir()
            invoke("esnet-data", "split", undivided, "-o", out)
            write(undivided / "images/new.png", np.zeros((*SIZE, 3), np.uint8))
            write(undivided / "masks/new.png", mask_of(0.5))
        lines = [set((out / "train.txt").read_text().splitlines()) for out in (before, after)]
        assert len(lines[0] - lines[1]) <= 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param(["--val", 1], "10 images leave none to train on", id="no-training"),
            pytest.param(["-o", "nowhere"], "nowhere", id="folder"),
        ],
    )
    def test_what_cannot_be_divided_is_one_line(self, invoke, undivided, options, message):
        done = invoke("esnet-data", "split", undivided, *options)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[0]

    def test_lists_that_exist_are_kept(self, invoke, undivided):
        (undivided / "val.txt").write_text("a b1.png")
        done = invoke("esnet-data", "split", undivided)
        assert done.stderr.startswith(f"error: {undivided / 'val.txt'} exists")
        assert not (undivided / "train.txt").exists()
