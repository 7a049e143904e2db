"""Images as frames: files, folders, patterns and lists; what cannot be read is named."""

import os

import cv2
import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.images import decode_image
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


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_jpeg_cannot_be_read(draw_image, share):
    path = draw_image("cut.jpg")
    content = path.read_bytes()
    path.write_bytes(content + b"data of the camera")
    assert read_image(path).shape == (64, 128, 3)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidInput, match="is truncated"):
        read_image(path)


@pytest.mark.parametrize("share", [0, 0.1, 0.5], ids=["empty", "header", "half"])
def test_a_truncated_png_cannot_be_read(draw_image, share):
    path = draw_image("a.png")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InvalidInput, match=r"a\.png cannot be read as an image"):
        read_image(path)


def test_sub_folders_are_kept_in_the_names(tmp_path, draw_image):
    for name in ("b.png", "day/a.png", "day/night/a.png", ".cache/x.png", "day/.x.png"):
        draw_image(name)
    source = open_source(tmp_path, recursive=True)
    assert names(source) == ["b", "day/a", "day/night/a"]
    assert source.files["day/a"] == tmp_path / "day" / "a.png"
    assert names(open_source(tmp_path)) == ["b"]


def test_a_pattern_is_read_below_its_fixed_part(tmp_path, draw_image):
    for name in ("day/a_left.png", "day/a_right.png", "night/b_left.png", "c_left.png"):
        draw_image(f"in/{name}")
    (tmp_path / "in" / "notes_left.txt").touch()
    found = names(open_source(f"{tmp_path}/in/**/*_left.*"))
    assert found == ["c_left", "day/a_left", "night/b_left"]
    assert names(open_source(f"{tmp_path}/in/day/*")) == ["a_left", "a_right"]


def test_a_file_comes_before_the_pattern_of_its_name(tmp_path, draw_image):
    for name in ("a[1].png", "a1.png"):
        draw_image(name)
    assert names(open_source(tmp_path / "a[1].png")) == ["a[1]"]


def test_a_list_names_images_relative_to_its_folder(tmp_path, draw_image):
    outside = draw_image("elsewhere/x.png")
    for name in ("in/b.png", "in/day/a.png"):
        draw_image(name)
    lines = f"\ufeff# frames\r\nday/a.png\r\n\r\nb.png\r\n../in/b.png\r\n{outside}\r\n"
    (tmp_path / "in" / "val.txt").write_text(lines)
    source = open_source(tmp_path / "in" / "val.txt")
    assert names(source) == ["day/a", "b", str(outside.with_suffix(""))[1:]]
    assert source.num_frames == 3


def test_a_missing_image_of_a_list_is_skipped(tmp_path, draw_image):
    draw_image("a.png")
    (tmp_path / "val.txt").write_text("a.png\nnone.png\n")
    source = open_source(tmp_path / "val.txt")
    assert names(source) == ["a"]
    assert source.skipped == [f"{tmp_path}/none.png cannot be read: No such file or directory"]


@pytest.mark.parametrize("name", [b"caf\xe9.png", "caf\u00e9 10:30.png".encode()])
def test_a_file_name_may_have_any_encoding(tmp_path, draw_image, name):
    draw_image("a.png").rename(tmp_path / os.fsdecode(name))
    (frame,) = open_source(tmp_path)
    assert os.fsencode(frame.name + ".png") == name
    (tmp_path / "list.txt").write_bytes(name)
    assert names(open_source(tmp_path / "list.txt")) == [frame.name]


def test_the_exif_rotation_is_applied(tmp_path, draw_image):
    jpeg = draw_image("a.jpg").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    assert read_image(tmp_path / "a.jpg").shape == (128, 64, 3)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", []),
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".bmp", []),
        (".ppm", []),
        (".tif", []),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    ],
)
def test_an_image_over_the_limit_is_refused_by_its_header(frame, suffix, options):
    data = cv2.imencode(suffix, frame, options)[1].tobytes()
    assert decode_image(data, "a", max_pixels=64 * 128).shape == (64, 128, 3)
    with pytest.raises(InvalidInput, match="a has 128x64 pixels, more than 8,191"):
        decode_image(data, "a", max_pixels=64 * 128 - 1)


@pytest.mark.parametrize("at", [33, -12], ids=["pixels", "end"])
def test_a_png_chunk_longer_than_the_file_is_not_decoded(frame, monkeypatch, at):
    data = bytearray(cv2.imencode(".png", frame)[1].tobytes())
    data[at if at > 0 else len(data) + at] = 0xC4  # a length of 3 GB, which OpenCV would allocate
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InvalidInput, match="a cannot be read as an image"):
        decode_image(bytes(data), "a")


def test_a_huge_picture_does_not_end_the_folder(tmp_path, draw_image):
    png = draw_image("bomb.png").read_bytes()
    sides = (60_000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(png[:16] + sides + png[24:])
    draw_image("good.png")
    source = open_source(tmp_path)
    assert names(source) == ["good"]
    assert source.skipped == [f"{tmp_path}/bomb.png has 60000x60000 pixels, more than 100,000,000"]


def test_stop_ends_the_iteration(tmp_path, draw_image):
    for name in ("a.png", "b.png"):
        draw_image(name)
    source = open_source(tmp_path)
    frames = iter(source)
    assert next(frames).name == "a"
    source.stop()
    assert next(frames, None) is None
    assert names(source) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("v.mp4", b"not a video", "cannot be decoded as a video", id="not-a-video"),
        pytest.param("v.mp4", b"", "cannot be decoded as a video", id="empty-video"),
        pytest.param("notes.md", b"a", "neither an image nor a video.*'.md'", id="unknown-suffix"),
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


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("a.png", {"recursive": True}, "recursive has no effect on the image 'a.png'"),
        ("a.png", {"reconnect": 5}, "reconnect has no effect on the image"),
        (".", {"size_hw": (4, 4)}, "size has no effect on the folder"),
        (
            "rtsp://host/x",
            {"pixel_format": "nv12"},
            "pixel-format has no effect on the network stream",
        ),
        ("*.gif", {}, r"pattern \*\.gif holds no images"),
        ("ftp://host/a.png", {}, "unknown protocol ftp://"),
        ("rtsp:///live", {}, "'rtsp:///live' names no host"),
        ("-", {}, "raw frames on stdin need a size"),
    ],
)
def test_a_setting_without_effect_or_a_bad_source_is_refused(
    draw_image, monkeypatch, tmp_path, source, settings, message
):
    draw_image("a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        open_source(source, **settings)


def test_a_nul_in_a_list_is_a_name_that_cannot_be_read(tmp_path, draw_image):
    draw_image("a.png")
    (tmp_path / "list.txt").write_bytes(b"a.png\nb\0.png\n")
    source = open_source(tmp_path / "list.txt")
    assert names(source) == ["a"]
    assert source.skipped[0].endswith("cannot be read: embedded null byte")
