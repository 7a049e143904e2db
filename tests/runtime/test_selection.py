"""Which frames are used: of images, of videos, and of one part of several."""

import itertools

import numpy as np
import pytest

from runtime.errors import InvalidInput
from runtime.media.selection import Selection, shard_from_text
from runtime.media.sources import open_source


@pytest.fixture
def photos(draw_image, tmp_path):
    for name in "abcdefgh":
        draw_image(f"in/{name}.png")
    return open_source(tmp_path / "in")


@pytest.fixture
def video(draw_video):
    """Ten frames, 0.1 s each."""
    return open_source(draw_video("v.mp4", num_frames=10))


def numbers(source):
    return [int(frame.name.rpartition("_")[2]) for frame in source]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        pytest.param({"every": 3}, "adg", id="every"),
        pytest.param({"max_frames": 3}, "abc", id="max-frames"),
        pytest.param({"shard": (2, 3)}, "beh", id="shard"),
        pytest.param({"every": 2, "shard": (2, 2), "max_frames": 1}, "c", id="all"),
        pytest.param({}, "abcdefgh", id="none"),
    ],
)
def test_images_are_selected_before_they_are_read(photos, monkeypatch, settings, names):
    read = []
    monkeypatch.setattr(
        "runtime.media.images.read_image",
        lambda path: read.append(path.stem) or np.zeros((1, 1, 3)),
    )
    used = Selection(**settings).of(photos)
    assert used.num_frames == len(names)
    assert [frame.name for frame in used] == list(names) == read


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"every": 3}, [0, 3, 6, 9], id="every"),
        pytest.param({"max_frames": 3}, [0, 1, 2], id="max-frames"),
        pytest.param({"shard": (2, 3)}, [1, 4, 7], id="shard"),
        pytest.param({"duration": 0.35}, [0, 1, 2, 3], id="duration"),
        pytest.param({"duration": 0.35, "every": 2, "max_frames": 1}, [0], id="all"),
        pytest.param({"duration": 99}, list(range(10)), id="more-than-all"),
    ],
)
def test_frames_of_a_video_are_selected_and_counted(video, settings, expected):
    used = Selection(**settings).of(video)
    assert numbers(used) == expected
    assert used.num_frames == len(expected)


def test_every_third_frame_of_a_video_has_a_third_of_its_rate(video):
    assert Selection(every=3).of(video).fps == pytest.approx(10 / 3)


@pytest.mark.parametrize("of", ["photos", "video"])
@pytest.mark.parametrize("every", [1, 2])
def test_parts_are_disjoint_and_complete(request, of, every):
    source = request.getfixturevalue(of)
    parts = [
        [frame.name for frame in Selection(every=every, shard=(part, 3)).of(source)]
        for part in (1, 2, 3)
    ]
    whole = [frame.name for frame in Selection(every=every).of(source)]
    assert sorted(itertools.chain(*parts)) == whole


def test_frames_that_are_done_do_not_count(photos, video):
    used = Selection(max_frames=2).of(photos, lambda name: name in "abd")
    assert [frame.name for frame in used] == ["c", "e"]
    used = Selection(max_frames=2).of(video, lambda name: name.endswith(("0", "1")))
    assert numbers(used) == [2, 3]


def test_unreadable_images_are_counted_in_the_selected_source(photos, tmp_path):
    (tmp_path / "in" / "c.png").write_bytes(b"no picture")
    used = Selection(every=2).of(photos)
    assert [frame.name for frame in used] == ["a", "e", "g"]
    assert len(used.skipped) == 1


def test_images_have_no_duration(photos):
    with pytest.raises(InvalidInput, match="duration has no effect on the images of"):
        Selection(duration=3).of(photos)


@pytest.mark.parametrize("hidden", [(), ("av",)], ids=["pyav", "opencv"])
@pytest.mark.parametrize("start", [0.1, 0.25, 0.9, 1.5])
def test_a_video_starts_at_a_position_with_the_names_of_the_whole(
    video, hide_library, tmp_path, hidden, start
):
    if not hidden:
        pytest.importorskip("av")
    hide_library(*hidden)
    expected = [frame for frame in video if frame.timestamp >= start - 1e-9]
    source = open_source(tmp_path / "v.mp4", start=start)
    found = list(source)
    assert [frame.name for frame in found] == [frame.name for frame in expected]
    assert source.num_frames == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.image, other.image, atol=3)


def test_an_image_has_no_start(draw_image):
    with pytest.raises(InvalidInput, match="start has no effect on the image"):
        open_source(draw_image("a.png"), start=1.0)


def test_a_shard_is_parsed():
    assert shard_from_text("2/4") == (2, 4)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4"])
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(InvalidInput, match=r"is not PART/PARTS"):
        shard_from_text(text)


def test_a_transport_stream_without_an_index_starts_at_a_position(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "v.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "30", "bf": "2"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(400):
            picture = np.full((32, 32, 3), index % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frame = next(iter(open_source(path, start=13.3)))
    assert frame.name == "v_000333"
    assert frame.image.mean() == pytest.approx(333 - 250, abs=2)
