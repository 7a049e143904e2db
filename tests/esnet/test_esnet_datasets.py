"""Datasets in their own trees: files are found, paired and mapped, and missing ones are reported."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from esnet.data.datasets import open_split
from esnet.errors import DatasetError
from esnet.labels import CITYSCAPES

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
        assert all(file.labels_path.stem == file.image_path.stem for file in found.files)

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
            pytest.param("train/frame0.png", "line 1: .* is not two paths", id="one-path"),
            pytest.param("\n", "lists no images", id="empty"),
        ],
    )
    def test_a_bad_list_is_named_with_its_line(self, camvid, text, message):
        (camvid / "test.txt").write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_split("camvid", camvid, "test")

    def test_a_missing_split_names_those_that_are_there_and_the_tree(self, camvid):
        with pytest.raises(
            DatasetError, match=r"no CamVid split 'test' .* it has train, val"
        ) as caught:
            open_split("camvid", camvid, "test")
        assert "trainannot/*.png" in caught.value.hint

    def test_a_missing_folder_is_said_to_be_missing(self, tmp_path):
        with pytest.raises(DatasetError, match="there is no such folder"):
            open_split("camvid", tmp_path / "nowhere", "train")

    def test_a_picture_without_labels_is_named(self, camvid):
        (camvid / "trainannot" / "frame1.png").unlink()
        with pytest.raises(DatasetError, match=r"1 of 3 images have no labels.*frame1\.png"):
            open_split("camvid", camvid, "train")

    def test_a_label_outside_the_set_is_named_with_its_file(self, camvid):
        write(camvid / "trainannot" / "frame0.png", labels(0, 12, 200))
        with pytest.raises(
            DatasetError, match=r"frame0\.png holds the label values \[12, 200\].*0-11"
        ):
            open_split("camvid", camvid, "train")[0]

    def test_coloured_labels_are_refused(self, camvid):
        write(camvid / "trainannot" / "frame0.png", picture())
        with pytest.raises(DatasetError, match="expected one channel of uint8"):
            open_split("camvid", camvid, "train")[0]

    def test_two_sizes_are_refused(self, camvid):
        write(camvid / "trainannot" / "frame0.png", labels(0)[:8])
        with pytest.raises(DatasetError, match=r"is 24x32, its labels .* are 8x32"):
            open_split("camvid", camvid, "train")[0]

    @pytest.mark.parametrize("folder", ["train", "trainannot"])
    def test_a_damaged_picture_is_named(self, camvid, folder):
        (camvid / folder / "frame0.png").write_bytes(b"not a picture")
        with pytest.raises(DatasetError, match=rf"{folder}/frame0\.png cannot be decoded"):
            open_split("camvid", camvid, "train")[0]

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
        expected = [CITYSCAPES.train_ids.get(value, 255) for value in range(34)]
        np.testing.assert_array_equal(found[0].labels, labels(*expected))
        assert "2 of 2 labels of val are _labelIds" in found.notes[0]

    def test_train_ids_win_over_label_ids(self, cityscapes):
        path = next((cityscapes / "gtFine" / "val").rglob("*_labelTrainIds.png"))
        write(path.with_name(path.name.replace("TrainIds", "Ids")), labels(7))
        assert open_split("cityscapes", cityscapes, "val").notes == ()

    def test_a_picture_without_labels_is_named(self, cityscapes):
        next((cityscapes / "gtFine" / "train").rglob("*.png")).unlink()
        with pytest.raises(DatasetError, match=r"_leftImg8bit\.png has no labels"):
            open_split("cityscapes", cityscapes, "train")

    def test_the_test_split_has_no_public_labels(self, cityscapes):
        with pytest.raises(DatasetError, match="not public"):
            open_split("cityscapes", cityscapes, "test")

    @pytest.mark.parametrize("split", ["demoVideo", "train_extra2"])
    def test_a_missing_split_names_those_that_are_there(self, cityscapes, split):
        with pytest.raises(DatasetError, match="leftImg8bit has train, train_extra, val"):
            open_split("cityscapes", cityscapes, split)

    def test_a_value_outside_the_train_ids_is_named(self, cityscapes):
        path = next((cityscapes / "gtFine" / "train").rglob("*_labelTrainIds.png"))
        write(path, labels(0, 19))
        with pytest.raises(
            DatasetError, match=r"holds the label values \[19\], outside the set \(0-18 and 255\)"
        ):
            list(open_split("cityscapes", cityscapes, "train"))


def test_an_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="unknown dataset 'kitti'"):
        open_split("kitti", tmp_path, "train")
