"""Options of ``esnet-segment`` that decide what is written: records, resumed folders, parts, the summary."""

import json
import os
import re
import shlex

import numpy as np
import pytest

from runtime.media.sources import open_source, read_image
from runtime.output.summary import Statistics
from runtime.segment import segment_source
from tests.conftest import ROOT


@pytest.fixture
def segment(tmp_path, make_artefact, invoke):
    """Run the command in the test's folder."""

    def run(source, *options, model=None):
        words = [source, "-m", model or make_artefact(), "--backend", "null", *options]
        return invoke("esnet-segment", *words, cwd=tmp_path)

    return run


@pytest.fixture
def photos(draw_image):
    for name in "abc":
        draw_image(f"in/{name}.png")


def test_a_record_tells_time_shares_and_latency_of_a_frame(segment, draw_video, card, tmp_path):
    done = segment(draw_video("in.mp4", num_frames=3), "--jsonl", "log.jsonl")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["frame"] for record in records] == [0, 1, 2]
    assert [record["time"] for record in records] == [0, 0.1, 0.2]
    assert records[2]["name"] == "in_000002"
    assert records[2]["drops"] == 0
    assert records[2]["shares"] == {card.class_names[0]: 1} | dict.fromkeys(card.class_names[1:], 0)
    assert set(records[2]["latency_ms"]) == {"read", "wait", "infer", "draw", "write"}


def test_records_on_stdout_leave_the_summary_to_stderr(segment, photos):
    done = segment("in", "--jsonl", "-")
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["a", "b", "c"]
    assert done.stderr.startswith("3 frames in ")


def test_records_replace_those_of_an_earlier_run_but_no_other_file(segment, photos, tmp_path):
    for _ in range(2):
        assert segment("in", "--jsonl", "log.jsonl").returncode == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    (tmp_path / "notes.txt").write_text("precious")
    done = segment("in", "--jsonl", "notes.txt")
    assert done.returncode == 2
    assert "notes.txt exists and was not written by esnet-segment" in done.stderr


def test_records_never_replace_the_source(segment, photos, tmp_path):
    segment("in", "-o", "ours.mp4")
    before = (tmp_path / "ours.mp4").read_bytes()
    done = segment("ours.mp4", "--jsonl", "ours.mp4", "--overwrite")
    assert done.returncode == 2
    assert "is the input file itself" in done.stderr
    assert (tmp_path / "ours.mp4").read_bytes() == before


def test_a_resumed_folder_gets_the_frames_that_it_lacks(segment, photos, tmp_path):
    segment("in", "-o", "out", "--jsonl", "log.jsonl", "--max-frames", "1")
    first = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    done = segment("in", "-o", "out", "--jsonl", "log.jsonl", "--resume")
    assert done.returncode == 0, done.stderr
    assert "frames: 2 in, 2 out" in done.stdout
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == first
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.png"]
    names = [json.loads(line)["name"] for line in (tmp_path / "log.jsonl").open()]
    assert names == ["a", "b", "c"]


def test_a_folder_that_is_complete_is_resumed_with_nothing_to_do(segment, photos):
    segment("in", "-o", "out")
    done = segment("in", "-o", "out", "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 frames in")


def test_a_video_is_resumed_in_a_folder(segment, draw_video, tmp_path):
    video = draw_video("in.mp4", num_frames=4)
    segment(video, "-o", "out", "--max-frames", "2")
    done = segment(video, "-o", "out", "--resume")
    assert "frames: 2 in, 2 out" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == [f"in_00000{index}.png" for index in range(4)]


def test_the_same_command_works_again(segment, photos, draw_video):
    video = draw_video("in.mp4")
    for words in (["in", "-o", "out"], [video, "-o", "out.mp4"], ["in/a.png", "-o", "a.jpg"]):
        for _ in range(2):
            done = segment(*words)
            assert done.returncode == 0, done.stderr


def test_parts_make_a_whole_folder(segment, photos, tmp_path):
    for part in ("1/2", "2/2"):
        assert segment("in", "-o", "out", "--shard", part).returncode == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.png"]


def test_a_stretch_of_a_video_keeps_its_speed(segment, draw_video, tmp_path):
    video = draw_video("in.mp4", num_frames=10)
    options = ["--start", "0.2s", "--duration", "0.6", "--every", "2"]
    done = segment(video, "-o", "out.mp4", *options)
    assert done.returncode == 0, done.stderr
    written = open_source(tmp_path / "out.mp4")
    assert (written.num_frames, written.fps) == (3, 5.0)


def test_a_letterboxed_frame_keeps_its_size(segment, draw_image, tmp_path):
    done = segment(draw_image("in.png", size_hw=(90, 30)), "-o", "out.png", "--resize", "letterbox")
    assert done.returncode == 0, done.stderr
    assert read_image(tmp_path / "out.png").shape == (90, 30, 3)


def test_drawing_options_reach_the_image(segment, draw_image, card, tmp_path):
    source = draw_image("in.png")
    options = ["--draw", "colors", "--classes", f"{card.class_names[0]}, {card.class_names[1]}"]
    segment(source, "-o", "shown.png", *options)
    segment(source, "-o", "hidden.png", "--draw", "colors", "--classes", card.class_names[1])
    assert (read_image(tmp_path / "shown.png") == card.palette[0]).all()
    assert not read_image(tmp_path / "hidden.png").any()


def test_confidence_is_written(segment, draw_image, make_artefact, tmp_path):
    model = make_artefact(outputs=("labels", "confidence"))
    done = segment(draw_image("in.png"), "-o", "out.png", "--draw", "confidence", model=model)
    assert done.returncode == 0, done.stderr
    assert not read_image(tmp_path / "out.png").any()  # the null backend is never sure


def test_the_summary_tells_frames_stages_and_misses(segment, photos):
    done = segment("in", "-o", "out", "--target-fps", "1000000")
    lines = done.stdout.splitlines()
    assert lines[1] == "frames: 3 in, 3 out, 0 dropped, 0 skipped"
    assert lines[2].startswith("p50 / p95 in ms: read ")
    assert lines[3].startswith("deadline misses: 2 of 2 results came more than 0.0 ms after")
    assert lines[4] == "wrote out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param([], "there is no output", id="no-output"),
        pytest.param(["-o", "x", "--jsonl", "x"], "cannot both be x", id="one-file-for-both"),
        pytest.param(["-o", "x.mp4", "--resume"], "only a folder of images", id="resume-video"),
        pytest.param(["-o", "out", "--shard", "3/2"], "shard '3/2'", id="shard"),
        pytest.param(["-o", "out", "--start", "1"], "start has no effect", id="start"),
        pytest.param(["-o", "out", "--duration", "1"], "duration has no effect", id="duration"),
        pytest.param(["-o", "out", "--classes", "river"], "no class 'river'", id="class"),
        pytest.param(["-o", "out", "--draw", "confidence"], "no confidence", id="confidence"),
        pytest.param(["--jsonl", "no/log.jsonl"], "folder no does not exist", id="no-folder"),
    ],
)
def test_options_that_do_not_fit_are_one_line_and_2(segment, photos, tmp_path, options, message):
    done = segment("in", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr.splitlines()[0]
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_without_pyav_a_video_is_warned_of(segment, draw_video, hide_library):
    hide_library("av")
    done = segment(draw_video("in.mp4"), "-o", "out.mp4")
    assert done.returncode == 0
    assert "warning: out.mp4 is MPEG-4, which browsers do not play" in done.stderr
    assert "pip install 'esnet-deploy[video]'" in done.stderr


def test_percentiles_are_those_of_the_durations():
    statistics = Statistics()
    durations = np.random.default_rng(0).lognormal(2, 1, 5001)
    for ms in durations:
        statistics.add({"infer": ms})
    for found, share in zip(statistics.percentiles()["infer"], (50, 95), strict=True):
        assert found == pytest.approx(np.percentile(durations, share), rel=0.01)


def test_the_first_error_of_a_stage_reaches_the_caller(
    draw_video, make_artefact, tmp_path, monkeypatch
):
    monkeypatch.setattr("runtime.output.drawing.draw_overlay", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment_source(draw_video("in.mp4"), make_artefact(), tmp_path / "out", backend="null")


def test_the_examples_of_the_outputs_work_one_after_the_other(segment, draw_image, draw_video):
    for name in ("photo.jpg", "photos/a.png", "photos/b.png"):
        draw_image(name)
    draw_video("drive.mp4", num_frames=12)
    text = (ROOT / "docs" / "streams.md").read_text().partition("\n## Outputs")[2]
    lines = re.findall(r"^esnet-segment .*", text.partition("\n## ")[0], re.MULTILINE)
    for line in lines:
        if "--show" in line:
            continue
        _, source, _, _, *options = shlex.split(line, comments=True)
        done = segment(source, *options)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert len(lines) >= 15
