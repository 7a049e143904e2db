"""Images, folders and videos as frames; what cannot be read is named."""

import os

import cv2
import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.sources import open_source, read_image


def names(source):
    return [frame.name for frame in source]


def test_an_image_is_one_frame_in_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((4, 6, 3), (0, 0, 255), np.uint8))
    (frame,) = open_source(tmp_path / "red.png")
    assert frame.name == "red"
    assert frame.image.shape == (4, 6, 3)
    assert (frame.image == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPG", ".bmp", ".tiff", ".webp", ".ppm"])
def test_every_common_kind_of_image_is_read(draw_image, suffix):
    (frame,) = open_source(draw_image(f"a{suffix}"))
    assert frame.image.shape == (64, 128, 3)


def test_a_grey_image_becomes_three_channels(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 6), 77, np.uint8))
    assert (read_image(tmp_path / "grey.png") == 77).all()
    assert read_image(tmp_path / "grey.png").shape == (4, 6, 3)


def test_a_path_may_be_text(draw_image):
    assert names(open_source(str(draw_image("a.png")))) == ["a"]


def test_a_folder_is_read_in_order_of_names(tmp_path, draw_image):
    for name in ("b.png", "a.jpg", "c10.png", "c1.png"):
        draw_image(name)
    source = open_source(tmp_path)
    assert names(source) == ["a", "b", "c1", "c10"]
    assert source.num_frames == 4


def test_files_that_differ_in_suffix_alone_keep_it_in_their_names(tmp_path, draw_image):
    for name in ("a.png", "a.jpg", "b.png"):
        draw_image(name)
    assert names(open_source(tmp_path)) == ["a.jpg", "a.png", "b.png"]


def test_what_is_no_image_is_left_out(tmp_path, draw_image):
    draw_image("a.png")
    (tmp_path / "labels.txt").write_text("a")
    (tmp_path / "folder.png").mkdir()
    source = open_source(tmp_path)
    assert source.num_frames == 1
    assert (names(source), source.skipped) == (["a"], [])


def test_an_unreadable_image_is_skipped_and_named(tmp_path, draw_image):
    for name in ("a.png", "c.png"):
        draw_image(name)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    source = open_source(tmp_path)
    assert names(source) == ["a", "c"]
    assert source.skipped == [f"{tmp_path / 'b.png'} cannot be read as an image"]


def test_skipped_frames_are_counted_anew_each_time(tmp_path, draw_image):
    draw_image("a.png")
    (tmp_path / "b.png").touch()
    source = open_source(tmp_path)
    assert (names(source), names(source)) == (["a"], ["a"])
    assert len(source.skipped) == 1


@pytest.mark.parametrize("share", [0, 0.1, 0.5], ids=["empty", "header", "half"])
def test_a_truncated_png_cannot_be_read(draw_image, share):
    path = draw_image("a.png")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InvalidInput, match=r"a\.png cannot be read as an image"):
        read_image(path)


def test_a_video_is_read_in_order(draw_video):
    source = open_source(draw_video("drive.mp4", num_frames=6))
    frames = list(source)
    assert [frame.name for frame in frames] == [f"drive_{i:06d}" for i in range(6)]
    assert np.all(np.diff([frame.image.mean() for frame in frames]) > 10)


def test_a_video_tells_its_length_and_rate(draw_video):
    source = open_source(draw_video("drive.mp4", num_frames=6))
    assert (source.num_frames, source.fps) == (6, 10.0)


def test_a_video_can_be_read_again(draw_video):
    source = open_source(draw_video("drive.mp4"))
    assert names(source) == names(source)


def test_a_real_road_video_is_read(video_path):
    source = open_source(video_path)
    frames = [frame for frame, _ in zip(source, range(3), strict=False)]
    assert source.num_frames > 100
    assert source.fps == 25.0
    assert [frame.image.shape for frame in frames] == [(540, 960, 3)] * 3
    assert all(frame.image.std() > 20 for frame in frames)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("v.mp4", b"not a video", "cannot be decoded as a video", id="not-a-video"),
        pytest.param("v.mp4", b"", "cannot be decoded as a video", id="empty-video"),
        pytest.param(
            "notes.md", b"a", "neither an image nor a video.*'.md'", id="unknown-suffix"
        ),
        pytest.param("frames", b"a", "neither an image nor a video.*''", id="no-suffix"),
    ],
)
def test_a_file_that_holds_no_frames_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        open_source(tmp_path / name)


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"none\.png' does not exist"):
        open_source(tmp_path / "none.png")


def test_a_folder_without_images_says_what_images_are(tmp_path):
    with pytest.raises(InvalidInput, match="holds no images") as refusal:
        open_source(tmp_path)
    assert ".png" in refusal.value.hint
