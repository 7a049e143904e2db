"""Datasets in their own trees: files are found, paired and mapped, and missing ones are reported."""

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from esnet.data.datasets import open_split, open_split_of_model
from esnet.data.labelled import LabelledSplit
from esnet.errors import DatasetError
from esnet.labels import CAMVID, CITYSCAPES, LabelSet, numbered_classes

SIZE = (24, 32)


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def labels(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), SIZE)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    for split, suffix in (("train", ".png"), ("val", ".jpg")):
        for index in range(3):
            write(tmp_path / split / f"frame{index}{suffix}", picture(index))
            write(tmp_path / f"{split}annot" / f"frame{index}.png", labels(*range(12)))
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for split, kind in (("train", "gtFine"), ("val", "gtFine"), ("train_extra", "gtCoarse")):
        for index in range(2):
            city = "aachen" if index else "zurich"
            write(
                tmp_path / "leftImg8bit" / split / city / f"{city}_00{index}_leftImg8bit.png",
                picture(),
            )
            name = f"{city}_00{index}_{kind}_labelTrainIds.png"
            write(tmp_path / kind / split / city / name, labels(*range(19), 255))
    return tmp_path


class TestCamvid:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_pictures_of_any_suffix_are_paired_with_their_labels(self, camvid, split):
        found = open_split("camvid", camvid, split)
        assert [file.image_path.stem for file in found.files] == ["frame0", "frame1", "frame2"]
        assert all(file.mask_path.stem == file.image_path.stem for file in found.files)

    def test_a_sample_is_rgb_with_its_labels(self, camvid):
        sample = open_split("camvid", camvid, "train")[1]
        np.testing.assert_array_equal(sample.image, picture(1)[..., ::-1])
        np.testing.assert_array_equal(sample.labels, labels(*range(12)))

    def test_trainval_is_both_splits(self, camvid):
        assert len(open_split("camvid", camvid, "trainval")) == 6

    @pytest.mark.parametrize("prefix", ["", "/SegNet/CamVid/"])
    def test_a_list_file_serves_where_there_is_no_folder(self, camvid, prefix):
        line = f"{prefix}train/frame2.png {prefix}trainannot/frame2.png"
        (camvid / "test.txt").write_text(f"{line}\n\n")
        (file,) = open_split("camvid", camvid, "test").files
        assert file.image_path.stem == "frame2"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            pytest.param(
                "train/a.png trainannot/a.png", "line 1: .*a.png does not exist", id="gone"
            ),
            pytest.param(
                "train/frame0.png", "line 1: no image with a mask is named", id="one-path"
            ),
            pytest.param("a b c", "line 1: 'a b c' is not an image and a mask", id="three-paths"),
            pytest.param("\n", "lists no images", id="empty"),
        ],
    )
    def test_a_bad_list_is_named_with_its_line(self, camvid, text, message):
        (camvid / "test.txt").write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_split("camvid", camvid, "test")

    def test_a_missing_split_names_those_that_are_there_and_the_tree(self, camvid):
        with pytest.raises(DatasetError, match=r"no split 'test' .* it has train, val") as caught:
            open_split("camvid", camvid, "test")
        assert "trainannot/*.png" in caught.value.hint

    def test_a_missing_folder_is_said_to_be_missing(self, tmp_path):
        with pytest.raises(DatasetError, match="there is no such folder"):
            open_split("camvid", tmp_path / "nowhere", "train")

    def test_a_picture_without_labels_is_named(self, camvid):
        (camvid / "trainannot" / "frame1.png").unlink()
        with pytest.raises(
            DatasetError, match=r"frame1\.png has no mask .*trainannot/frame1\.png$"
        ):
            open_split("camvid", camvid, "train")

    def test_a_label_outside_the_set_is_named_with_its_file(self, camvid):
        write(camvid / "trainannot" / "frame0.png", labels(0, 12, 200))
        with pytest.raises(
            DatasetError, match=r"frame0\.png holds the label values \[12, 200\].*\(0-11, 255\)"
        ):
            open_split("camvid", camvid, "train")[0]

    def test_two_sizes_are_refused(self, camvid):
        write(camvid / "trainannot" / "frame0.png", labels(0)[:8])
        with pytest.raises(DatasetError, match=r"is 24x32, its mask .* is 8x32"):
            open_split("camvid", camvid, "train")[0]

    @pytest.mark.parametrize("folder", ["train", "trainannot"])
    def test_a_damaged_picture_is_named(self, camvid, folder):
        (camvid / folder / "frame0.png").write_bytes(b"not a picture")
        with pytest.raises(DatasetError, match=rf"{folder}/frame0\.png cannot be read as an image"):
            open_split("camvid", camvid, "train")[0]

    @pytest.mark.parametrize("folder", ["train", "trainannot"])
    def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(self, camvid, folder):
        header = struct.pack(">II5B", 60000, 60000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
        data = b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
        (camvid / folder / "frame0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
        with pytest.raises(DatasetError, match="60000x60000 pixels, more than 100,000,000"):
            open_split("camvid", camvid, "train")[0]

    def test_names_need_not_be_utf8(self, camvid):
        name = os.fsdecode(b"frame\xff.png")
        for folder in ("train", "trainannot"):
            (camvid / folder / "frame0.png").rename(camvid / folder / name)
        split = open_split("camvid", camvid, "train")
        index = [file.image_path.name for file in split.files].index(name)
        assert split[index].image.shape == (24, 32, 3)

    @pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
    def test_the_real_dataset_is_read(self, camvid_dir, split, count):
        found = open_split("camvid", camvid_dir, split)
        assert len(found) == count
        sample = found[count // 2]
        assert sample.image.shape == (360, 480, 3)
        assert set(np.unique(sample.labels)) <= set(range(12))


class TestCityscapes:
    @pytest.mark.parametrize("split", ["train", "val", "train_extra"])
    def test_every_split_is_found_in_the_official_tree(self, cityscapes, split):
        found = open_split("cityscapes", cityscapes, split)
        assert len(found) == 2
        assert found.notes == ()
        np.testing.assert_array_equal(found[0].labels, labels(*range(19), 255))

    def test_label_ids_are_mapped_and_the_user_is_told(self, cityscapes):
        for path in (cityscapes / "gtFine" / "val").rglob("*_labelTrainIds.png"):
            path.unlink()
            write(path.with_name(path.name.replace("TrainIds", "Ids")), labels(*range(34)))
        found = open_split("cityscapes", cityscapes, "val")
        expected = [CITYSCAPES.label_values[value] for value in range(34)]
        np.testing.assert_array_equal(found[0].labels, labels(*expected))
        assert "2 of 2 masks of val are _labelIds" in found.notes[0]

    def test_train_ids_win_over_label_ids(self, cityscapes):
        path = next((cityscapes / "gtFine" / "val").rglob("*_labelTrainIds.png"))
        write(path.with_name(path.name.replace("TrainIds", "Ids")), labels(7))
        assert open_split("cityscapes", cityscapes, "val").notes == ()

    def test_a_picture_without_labels_is_named(self, cityscapes):
        next((cityscapes / "gtFine" / "train").rglob("*.png")).unlink()
        with pytest.raises(DatasetError, match=r"_leftImg8bit\.png has no mask"):
            open_split("cityscapes", cityscapes, "train")

    def test_the_test_split_has_no_public_labels(self, cityscapes):
        with pytest.raises(DatasetError, match="not public"):
            open_split("cityscapes", cityscapes, "test")

    @pytest.mark.parametrize("split", ["demoVideo", "train_extra2"])
    def test_a_missing_split_names_those_that_are_there(self, cityscapes, split):
        with pytest.raises(DatasetError, match="it has train, train_extra, val"):
            open_split("cityscapes", cityscapes, split)

    def test_a_value_outside_the_train_ids_is_named(self, cityscapes):
        path = next((cityscapes / "gtFine" / "train").rglob("*_labelTrainIds.png"))
        write(path, labels(0, 19))
        with pytest.raises(
            DatasetError, match=r"holds the label values \[19\], outside the classes \(0-18, 255\)"
        ):
            list(open_split("cityscapes", cityscapes, "train"))


ORCHARD = LabelSet(
    name="orchard",
    class_names=("path", "tree", "fruit"),
    palette=((128, 64, 128), (0, 128, 0), (255, 0, 0)),
)


def orchard(root: Path, split: str = "train", label_set: LabelSet = ORCHARD) -> LabelledSplit:
    return open_split("folder", root, split, label_set=label_set)


class TestFolder:
    @pytest.mark.parametrize(
        ("image", "mask"),
        [
            pytest.param("images/train/a.jpg", "masks/train/a.png", id="masks"),
            pytest.param("images/train/a.jpg", "labels/train/a.png", id="labels"),
            pytest.param("images/train/a.jpg", "annotations/train/a.png", id="annotations"),
            pytest.param("train/images/a.jpg", "train/masks/a.png", id="split-first"),
            pytest.param("train/a.jpg", "trainannot/a.png", id="camvid-tree"),
            pytest.param("images/train/x/y/a.jpg", "masks/train/x/y/a.png", id="sub-folders"),
            pytest.param("images/train/a.tif", "masks/train/a_mask.bmp", id="ending"),
            pytest.param("images/train/a.b.webp", "masks/train/a.b.png", id="dots"),
        ],
    )
    def test_parallel_folders_are_paired(self, tmp_path, image, mask):
        write(tmp_path / image, picture())
        write(tmp_path / mask, labels(0, 1, 2, 255))
        split = orchard(tmp_path)
        assert split.files == ((tmp_path / image, tmp_path / mask),)
        np.testing.assert_array_equal(split[0].labels, labels(0, 1, 2, 255))

    def test_files_of_one_name_in_two_sub_folders_are_not_mixed_up(self, tmp_path):
        for index, drive in enumerate("xy"):
            write(tmp_path / "images/train" / drive / "a.png", picture())
            write(tmp_path / "masks/train" / drive / "a.png", labels(index))
        split = orchard(tmp_path)
        assert [split.labels(index).max() for index in range(2)] == [0, 1]

    def test_hidden_files_are_no_images(self, tmp_path):
        write(tmp_path / "images/train/a.png", picture())
        write(tmp_path / "images/train/._a.png", picture())
        write(tmp_path / "masks/train/a.png", labels(0))
        assert len(orchard(tmp_path)) == 1

    def test_the_dataset_is_named_like_its_folder(self, tmp_path):
        write(tmp_path / "images/train/a.png", picture())
        write(tmp_path / "masks/train/a.png", labels(0))
        assert orchard(tmp_path).dataset == tmp_path.name

    @pytest.mark.parametrize(
        "line",
        [
            pytest.param("images/a b.png\tmasks/a b.png", id="tab"),
            pytest.param("images/c.png masks/c.png", id="space"),
            pytest.param("images/c.png", id="image"),
            pytest.param("c.png", id="name"),
            pytest.param("c", id="stem"),
        ],
    )
    def test_a_line_of_a_list_names_an_image(self, tmp_path, line):
        for name in ("a b", "c"):
            write(tmp_path / "images" / f"{name}.png", picture())
            write(tmp_path / "masks" / f"{name}.png", labels(1))
        (tmp_path / "train.txt").write_text(f"\n{line}\n")
        (pair,) = orchard(tmp_path).files
        assert pair.image_path.stem in line
        assert pair.mask_path.name == pair.image_path.name

    @pytest.mark.parametrize("place", ["inside", "outside"])
    def test_a_list_file_may_lie_anywhere(self, tmp_path, place, monkeypatch):
        data = tmp_path / "data"
        write(data / "images/a.png", picture())
        write(data / "masks/a.png", labels(1))
        path = (data if place == "inside" else tmp_path) / "drive7.txt"
        path.write_text("a\n")
        monkeypatch.chdir(tmp_path)
        split = orchard(data, "drive7.txt")
        assert (len(split), split.split) == (1, "drive7")

    def test_a_list_that_is_no_text_is_named(self, tmp_path):
        (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DatasetError, match=r"train\.txt is not text"):
            orchard(tmp_path)

    def test_undivided_folders_are_the_split_all(self, tmp_path):
        write(tmp_path / "images/a.png", picture())
        write(tmp_path / "masks/a.png", labels(1))
        assert len(orchard(tmp_path, "all")) == 1
        with pytest.raises(DatasetError, match=r"no split 'train' .* it has all") as caught:
            orchard(tmp_path)
        assert "esnet-data split" in caught.value.hint

    def test_a_folder_without_images_and_masks_shows_the_trees(self, tmp_path):
        with pytest.raises(DatasetError, match="it has no images with masks") as caught:
            orchard(tmp_path)
        assert "images/train/a.jpg with masks/train/a.png" in caught.value.hint

    def test_an_empty_folder_holds_no_images(self, tmp_path):
        for name in ("images", "masks"):
            (tmp_path / name / "train").mkdir(parents=True)
        with pytest.raises(DatasetError, match=r"images/train holds no images"):
            orchard(tmp_path)

    def test_without_classes_it_cannot_be_read(self, tmp_path):
        with pytest.raises(DatasetError, match=r"classes of .* are unknown") as caught:
            open_split("folder", tmp_path, "train")
        assert "--label-set classes.yaml" in caught.value.hint


class TestMasks:
    @pytest.fixture
    def read(self, tmp_path):
        """Read the labels of a mask that a function writes to a path."""

        def read(write_mask, label_set: LabelSet = ORCHARD) -> np.ndarray:
            write(tmp_path / "images/train/a.png", picture())
            path = tmp_path / "masks/train/a.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path)
            return orchard(tmp_path, label_set=label_set).labels(0)

        return read

    def test_a_palette_png_holds_indices(self, read):
        image = Image.fromarray(labels(0, 1, 2, 255), mode="P")
        # Equal colours, so that the indices cannot come from them.
        image.putpalette([9] * 768)
        np.testing.assert_array_equal(read(image.save), labels(0, 1, 2, 255))

    @pytest.mark.parametrize("alpha", [False, True], ids=["rgb", "rgba"])
    def test_colours_are_those_of_the_palette(self, read, alpha):
        expected = labels(0, 1, 2, 255)
        colours = np.array([*ORCHARD.palette, (0, 0, 0)], np.uint8)[np.minimum(expected, 3)]
        if alpha:
            colours = np.dstack([colours, picture()[..., 0]])
        np.testing.assert_array_equal(read(Image.fromarray(colours).save), expected)

    def test_one_bit_is_zero_or_one(self, read):
        image = Image.fromarray(labels(0, 1) * 255).convert("1")
        np.testing.assert_array_equal(read(image.save), labels(0, 1))

    def test_values_are_mapped_up_to_16_bits(self, read):
        label_set = replace(ORCHARD, label_values={0: 255, 255: 0, 7001: 2})
        stored = np.resize(np.array([0, 255, 7001], np.uint16), SIZE)
        found = read(lambda path: write(path, stored), label_set)
        np.testing.assert_array_equal(found, labels(255, 0, 2))

    def test_a_value_above_a_byte_is_unknown_to_masks_of_a_byte(self, read):
        label_set = replace(ORCHARD, label_values={0: 0, 7001: 2})
        assert not read(lambda path: write(path, labels(0)), label_set).any()

    @pytest.mark.parametrize(
        ("stored", "message"),
        [
            pytest.param(labels(0, 3), r"the label values \[3\], .*\(0-2, 255\)", id="value"),
            pytest.param(
                np.full((*SIZE, 3), (9, 8, 7), np.uint8),
                r"the colours \[\(7, 8, 9\)\], outside the classes \(orchard's palette\)",
                id="colour",
            ),
            pytest.param(
                picture().astype(np.uint16), r"uint16 .* expected one channel, or RGB", id="rgb-16"
            ),
        ],
    )
    def test_what_belongs_to_no_class_is_named(self, read, stored, message):
        with pytest.raises(DatasetError, match=message):
            read(lambda path: write(path, stored))

    def test_a_damaged_palette_png_is_named(self, read):
        def write_half(path: Path) -> None:
            image = Image.fromarray(picture()[..., 0], mode="P")
            image.putpalette(bytes(range(256)) * 3)
            image.save(path)
            path.write_bytes(path.read_bytes()[:-30])

        with pytest.raises(DatasetError, match=r"a\.png cannot be read as an image"):
            read(write_half)


class TestSplitOfAModel:
    def test_the_models_classes_choose_the_dataset(self, camvid):
        assert open_split_of_model(CAMVID, camvid, "val").dataset == "camvid"

    def test_a_model_with_own_classes_reads_a_folder(self, tmp_path):
        write(tmp_path / "images/val/a.png", picture())
        write(tmp_path / "masks/val/a.png", labels(1))
        # A set of another project that happens to have the name of a known dataset.
        own = replace(ORCHARD, name="camvid")
        assert open_split_of_model(own, tmp_path, "val").label_set == own

    def test_a_model_without_names_takes_those_of_the_dataset(self, camvid):
        split = open_split_of_model(numbered_classes(11), camvid, "val", dataset="camvid")
        assert (split.label_set, split.notes) == (CAMVID, ())

    def test_other_names_are_told(self, camvid):
        model = replace(CAMVID, name="own", class_names=("heaven", *CAMVID.class_names[1:]))
        split = open_split_of_model(model, camvid, "val", dataset="camvid")
        assert split.notes == ("the class names differ: 'heaven' of the model is 'sky' of camvid",)

    def test_another_number_of_classes_is_refused(self, camvid):
        with pytest.raises(DatasetError, match="the model has 3 classes of orchard, camvid has 11"):
            open_split_of_model(ORCHARD, camvid, "val", dataset="camvid")


def test_an_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="unknown dataset 'mine'") as caught:
        open_split("mine", tmp_path, "train")
    assert "folder is for your own images and masks" in caught.value.hint
