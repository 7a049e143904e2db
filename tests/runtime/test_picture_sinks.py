"""Images are written completely or not at all, and never over their source."""

import os

import cv2
import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.sources import open_source, read_image
from runtime.output.images import write_image
from runtime.output.sinks import open_sink


@pytest.fixture
def image(draw_image):
    return open_source(draw_image("in/a.png"))


@pytest.fixture
def folder(draw_image, tmp_path):
    for name in ("a.png", "b.png"):
        draw_image(f"in/{name}")
    return open_source(tmp_path / "in")


@pytest.fixture
def video(draw_video):
    return open_source(draw_video("v.mp4"))


@pytest.fixture
def partial(draw_video):
    return open_source(draw_video("v.partial.mp4"))


@pytest.fixture
def out(tmp_path):
    """An empty folder to write to."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".ppm", ".tiff"])
def test_a_picture_comes_back_as_it_was(out, frame, suffix):
    write_image(out / f"a{suffix}", frame)
    np.testing.assert_array_equal(read_image(out / f"a{suffix}"), frame)


def test_a_jpeg_comes_back_nearly(out):
    picture = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    write_image(out / "a.jpg", picture)
    np.testing.assert_allclose(read_image(out / "a.jpg"), picture, atol=3)


def test_a_map_comes_back_with_its_values(out):
    class_map = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_image(out / "a.png", class_map)
    np.testing.assert_array_equal(cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED), class_map)


def test_a_folder_gets_a_png_for_each_name(out, folder, frame):
    with open_sink(out, folder) as write:
        write(frame, "a", 0.0)
        write(frame, "b.jpg", 0.0)
    assert sorted(os.listdir(out)) == ["a.png", "b.jpg.png"]


def test_a_missing_folder_is_made(out, folder, frame):
    with open_sink(out / "deep" / "er", folder) as write:
        write(frame, "a", 0.0)
    assert (out / "deep" / "er" / "a.png").is_file()


@pytest.mark.parametrize("name", ["frames.png", "frames.mp4", "run.v2"])
def test_a_folder_is_a_folder_whatever_its_name_ends_in(out, folder, frame, name):
    (out / name).mkdir()
    with open_sink(out / name, folder) as write:
        write(frame, "a", 0.0)
    assert os.listdir(out / name) == ["a.png"]


def test_an_image_file_takes_the_frame_of_a_single_image(out, image, frame):
    with open_sink(out / "x.png", image) as write:
        write(frame, "a", 0.0)
    assert os.listdir(out) == ["x.png"]


def test_a_failed_picture_leaves_the_old_one(out, frame, monkeypatch):
    write_image(out / "a.png", frame)
    before = (out / "a.png").read_bytes()
    monkeypatch.setattr("pathlib.Path.write_bytes", _disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_image(out / "a.png", frame[:8])
    monkeypatch.undo()
    assert os.listdir(out) == ["a.png"]
    assert (out / "a.png").read_bytes() == before


def test_a_full_disk_leaves_no_half_image_in_a_folder(out, folder, frame, monkeypatch):
    def write_half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        _disk_full()

    monkeypatch.setattr("pathlib.Path.write_bytes", write_half)
    with (
        pytest.raises(OSError, match="No space left"),
        open_sink(out, folder) as write,
    ):
        write(frame, "a", 0.0)
    assert os.listdir(out) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("x.png", "has 2 frames, 'x.png' is one image", id="one-image-for-many"),
        pytest.param("x.avi", "video output is .mp4, got 'x.avi'", id="avi"),
        pytest.param("x.gif", "output 'x.gif' has the unknown suffix", id="unknown-suffix"),
        pytest.param("none/x.mp4", "output folder .*none does not exist", id="no-folder"),
    ],
)
def test_an_output_that_does_not_suit_is_refused(out, folder, name, message):
    with pytest.raises(InvalidInput, match=message):
        open_sink(out / name, folder)


def test_a_file_in_the_place_of_a_folder_is_an_error(out, folder):
    (out / "x").touch()
    with pytest.raises(FileExistsError):
        open_sink(out / "x", folder)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        pytest.param("image", "in/a.png", id="image-on-itself"),
        pytest.param("image", "in/../in/a.png", id="image-by-another-path"),
        pytest.param("image", "in", id="image-into-its-own-folder"),
        pytest.param("folder", "in", id="folder-on-itself"),
        pytest.param("video", "v.mp4", id="video-on-itself"),
        pytest.param("partial", "v.mp4", id="partial-video"),
    ],
)
def test_the_source_is_never_written_over(tmp_path, request, source, output):
    with pytest.raises(InvalidInput, match="is the source itself"):
        open_sink(tmp_path / output, request.getfixturevalue(source))


def test_a_link_to_the_source_is_the_source(tmp_path, out, image):
    (out / "link.png").symlink_to(image.path)
    with pytest.raises(InvalidInput, match="is the source itself"):
        open_sink(out / "link.png", image)


def test_a_video_may_be_written_beside_its_source(tmp_path, video, frame):
    with open_sink(tmp_path, video) as write:
        write(frame, "a", 0.0)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "v.mp4"]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_of_ours_is_replaced(out, image, frame, suffix):
    for content in (frame, 255 - frame):
        with open_sink(out / f"x{suffix}", image) as write:
            write(content, "a", 0.0)
    assert abs(int(read_image(out / f"x{suffix}").mean()) - int((255 - frame).mean())) <= 1


@pytest.mark.parametrize("name", ["x.png", "x.mp4"])
def test_a_file_of_somebody_else_is_replaced_only_if_asked_for(out, image, frame, name):
    (out / name).write_bytes(b"precious")
    with pytest.raises(InvalidInput, match=rf"{name} exists and was not written by esnet-segment"):
        open_sink(out / name, image)
    assert (out / name).read_bytes() == b"precious"
    with open_sink(out / name, image, overwrite=True) as write:
        write(frame, "a", 0.0)
    assert (out / name).read_bytes() != b"precious"


def test_a_photo_in_the_output_folder_is_found_before_the_first_frame(out, folder, frame):
    cv2.imwrite(str(out / "b.png"), frame)
    with pytest.raises(InvalidInput, match=r"b\.png exists and was not written by esnet-segment"):
        open_sink(out, folder)


def test_a_photo_with_the_name_of_a_frame_is_kept(out, video, frame):
    cv2.imwrite(str(out / "v_000000.png"), frame)
    with (
        pytest.raises(InvalidInput, match=r"v_000000\.png exists"),
        open_sink(out, video) as write,
    ):
        write(255 - frame, "v_000000", 0.0)
    np.testing.assert_array_equal(read_image(out / "v_000000.png"), frame[..., ::-1])


def _disk_full(*_):
    raise OSError(28, "No space left on device")
