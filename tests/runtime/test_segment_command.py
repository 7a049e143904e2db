"""``esnet-segment`` as its user meets it: files in, files out, one line for each thing that is wrong."""

import os
import pty
import subprocess

import cv2
import numpy as np
import onnx
import pytest

from runtime.media.sources import open_source, read_image
from runtime.segmenter import Segmenter
from tests.conftest import command_line, run_command


@pytest.fixture
def segment(tmp_path, make_artefact, invoke):
    """Run the command in the test's folder."""

    def run(source, output, *options, model=None):
        model = model or make_artefact(optimized_for="openvino")
        words = [source, "--model", model, "--output", output, *options]
        return invoke("esnet-segment", *words, cwd=tmp_path)

    return run


def test_an_image_becomes_an_overlay_of_its_size(segment, draw_image, tmp_path):
    source = draw_image("in.png", size_hw=(90, 70))
    done = segment(source, "out.png")
    assert done.returncode == 0, done.stderr
    assert "1 frame in" in done.stdout
    assert "wrote out.png" in done.stdout
    picture = read_image(tmp_path / "out.png")
    assert picture.shape == (90, 70, 3)
    assert np.any(picture != read_image(source))


def test_labels_are_the_segmenters_class_indices(segment, draw_image, make_artefact, tmp_path):
    source = draw_image("in.png", size_hw=(90, 70))
    done = segment(source, "out.png", "--draw", "labels", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    labels = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)
    with Segmenter.open(
        make_artefact(optimized_for="openvino"), backend="onnxruntime"
    ) as segmenter:
        np.testing.assert_array_equal(labels, segmenter.segment(read_image(source)))


def test_colors_are_those_of_the_palette(segment, draw_image, card, tmp_path):
    segment(draw_image("in.png"), "out.png", "--draw", "colors", "--backend", "null")
    assert (read_image(tmp_path / "out.png") == card.palette[0]).all()


def test_alpha_and_legend_reach_the_overlay(segment, draw_image, tmp_path):
    source = draw_image("in.png")
    segment(source, "out.png", "--alpha", "0", "--no-legend", "--backend", "null")
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), read_image(source))


def test_a_folder_becomes_a_folder(segment, draw_image, tmp_path):
    for name in ("b.jpg", "a.png", "c.png"):
        draw_image(f"in/{name}")
    done = segment("in", "out", "--backend", "null")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.png"]
    assert "3 frames in" in done.stdout


def test_a_video_becomes_a_video(segment, draw_video, tmp_path):
    done = segment(draw_video("in.mp4", num_frames=7), "out.mp4", "--backend", "null")
    assert done.returncode == 0, done.stderr
    written = open_source(tmp_path / "out.mp4")
    assert (written.num_frames, written.fps) == (7, 10.0)


def test_the_backend_and_its_precision_are_reported(segment, draw_image):
    done = segment(draw_image("in.png"), "out.png", "--backend", "onnxruntime")
    assert "on onnxruntime fp32, " in done.stdout


def test_an_artefact_for_another_engine_is_warned_of_once(segment, draw_image, make_artefact):
    model = make_artefact(optimized_for="tensorrt")
    for name in ("a.png", "b.png"):
        draw_image(f"in/{name}")
    done = segment("in", "out", "--backend", "onnxruntime", model=model)
    assert done.returncode == 0
    assert done.stderr.count("warning:") == 1
    assert "warning: the graph is optimized for tensorrt; for onnxruntime: " in done.stderr


def test_an_artefact_for_this_engine_is_run_in_silence(segment, draw_image):
    assert segment(draw_image("in.png"), "out.png", "--backend", "openvino").stderr == ""


FAILED_CHECK = {"quantization": {"backends": ["onnxruntime"]}}


def test_the_choice_is_explained(segment, draw_image):
    done = segment(draw_image("in.png"), "out.png", "--explain")
    first, *candidates = done.stderr.splitlines()
    assert first.endswith("chosen by the CPU time of a small network, one thread")
    assert {line.split()[0] for line in candidates} == {"openvino", "onnxruntime"}
    assert f" on {first.partition(':')[0]}, " in done.stdout


def test_a_backend_that_failed_the_label_check_is_skipped(segment, draw_image, artefact_with):
    done = segment(draw_image("in.png"), "out.png", model=artefact_with(**FAILED_CHECK))
    assert done.returncode == 0, done.stderr
    assert "note: openvino is skipped: it failed the label check" in done.stderr
    assert "on onnxruntime fp32, " in done.stdout


def test_naming_it_is_an_error_with_the_fix(segment, draw_image, artefact_with):
    model = artefact_with(**FAILED_CHECK)
    done = segment(draw_image("in.png"), "out.png", "--backend", "openvino", model=model)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: openvino did not pass the label check of ")
    assert hint.startswith("hint: --backend onnxruntime, or ")


def test_the_mismatch_may_be_allowed(segment, draw_image, artefact_with):
    options = ["--backend", "openvino", "--allow-mismatch"]
    done = segment(draw_image("in.png"), "out.png", *options, model=artefact_with(**FAILED_CHECK))
    assert done.returncode == 0
    assert "warning: openvino did not pass the check of this INT8 artefact" in done.stderr
    assert "on openvino fp32, " in done.stdout


def test_unreadable_images_are_named_counted_and_end_with_1(make_artefact, draw_image, tmp_path):
    for name in ("a.png", "c.png"):
        draw_image(f"in/{name}")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    words = ["in", "-m", make_artefact(), "-o", "out", "--backend", "null"]
    done = run_command("esnet-segment", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "skipped: in/b.png cannot be read as an image" in done.stdout
    assert "frames: 3 in, 2 out, 0 dropped, 1 skipped" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "c.png"]
    assert done.stderr == ""


def test_ffmpeg_prints_nothing_of_its_own_about_a_broken_video(make_artefact, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    words = ["bad.mp4", "-m", make_artefact(), "-o", "out.mp4", "--backend", "null"]
    done = run_command("esnet-segment", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: bad.mp4 cannot be decoded")


def test_without_one_readable_image_there_is_an_error(segment, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    done = segment("a.png", "out.png", "--backend", "null")
    assert done.returncode == 2
    assert "error: no frame of a.png could be read: a.png cannot be read as an image" in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_a_video_shorter_than_its_header_says_is_a_warning(segment, frame, tmp_path):
    path = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (128, 64))
    for _ in range(9):
        writer.write(frame)
    writer.release()
    os.truncate(path, int(path.stat().st_size * 0.6))
    done = segment("in.avi", "out.mp4", "--backend", "null")
    assert done.returncode == 0
    assert "its header promises 9: the file may be truncated" in done.stderr


def test_images_of_two_sizes_are_no_video(segment, draw_image, tmp_path):
    draw_image("in/a.png")
    draw_image("in/b.png", size_hw=(32, 32))
    done = segment("in", "out.mp4", "--backend", "null")
    assert done.returncode == 2
    assert "error: frame b is (32, 32), the video's first was (64, 128)" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["in", "out.partial.mp4"]


def test_a_person_sees_a_progress_bar_on_stderr(draw_image, make_artefact, tmp_path):
    draw_image("[red]frames/a.png")  # a name that would be markup
    options = ["-m", make_artefact(), "-o", tmp_path / "out", "--backend", "null"]
    screen, terminal = pty.openpty()
    done = subprocess.run(
        command_line("esnet-segment", tmp_path / "[red]frames", *options),
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm"},
        text=True,
        check=False,
    )
    os.close(terminal)
    shown = os.read(screen, 65536).decode()
    assert done.returncode == 0, shown
    assert "[red]frames " in shown
    assert "1/1" in shown
    assert done.stdout.startswith("1 frame in")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path, whole: None, "does not exist", id="missing"),
        pytest.param(lambda path, whole: path.touch(), "is empty", id="empty"),
        pytest.param(lambda path, whole: path.mkdir(), "is a folder", id="folder"),
        pytest.param(lambda path, whole: path.write_bytes(whole[:9999]), "is truncated", id="cut"),
        pytest.param(lambda path, whole: path.write_text("hi"), "not an ONNX file", id="not-onnx"),
    ],
)
def test_an_unusable_model_is_one_line_and_2(
    segment, draw_image, make_artefact, tmp_path, make, message
):
    make(tmp_path / "bad.onnx", make_artefact().read_bytes())
    done = segment(draw_image("in.png"), "out.png", model="bad.onnx")
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "bad.onnx" in error
    assert message in error
    assert hint.startswith("hint: ")


def test_an_onnx_file_without_a_card_is_refused(segment, draw_image, identity_model, tmp_path):
    onnx.save(identity_model, tmp_path / "bare.onnx")
    done = segment(draw_image("in.png"), "out.png", model="bare.onnx")
    assert done.returncode == 2
    assert "error: bare.onnx is an ONNX file without a model card" in done.stderr


@pytest.mark.parametrize(
    ("source", "output", "options", "message"),
    [
        pytest.param("none.png", "out.png", [], "'none.png' does not exist", id="no-source"),
        pytest.param("empty", "out", [], "folder empty holds no images", id="empty-folder"),
        pytest.param("bad.mp4", "o.mp4", [], "bad.mp4 cannot be decoded", id="not-a-video"),
        pytest.param("notes.md", "out", [], "neither an image nor a video", id="unknown-source"),
        pytest.param("in.png", "/proc/out.png", [], "/proc/out.png", id="unwritable-file"),
        pytest.param("in.png", "in.png/out", [], "in.png/out", id="unwritable-folder"),
        pytest.param("in.png", "no/out.png", [], "folder no does not exist", id="no-folder"),
        pytest.param("in.png", "in.png", [], "is the source itself", id="onto-itself"),
        pytest.param(
            "in.png", "out.gif", [], "'out.gif' has the unknown suffix", id="unknown-output"
        ),
        pytest.param(
            "in.png", "o.jpg", ["--draw", "labels"], "not survive .jpg", id="lossy-labels"
        ),
        pytest.param("in.png", "o.png", ["--backend", "tf"], "unknown backend", id="backend"),
        pytest.param("in.png", "o.png", ["--device", "1"], "'null' does not run on", id="device"),
        pytest.param("in.png", "o.png", ["--precision", "int3"], "cannot run int3", id="precision"),
    ],
)
def test_bad_input_is_one_line_and_2(
    segment, draw_image, tmp_path, source, output, options, message
):
    draw_image("in.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "notes.md").touch()
    done = segment(source, output, "--backend", "null", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr.splitlines()[0]


def test_the_hint_quotes_a_folder_with_a_space(segment, draw_image):
    done = segment(draw_image("in.png"), "my photos/out.png", "--backend", "null")
    assert done.stderr.splitlines()[1] == "hint: mkdir -p 'my photos'"


@pytest.mark.parametrize(
    "options",
    [["--alpha", "2"], ["--draw", "poem"], ["--nonsense"]],
    ids=["alpha", "draw", "unknown-option"],
)
def test_a_wrong_option_is_a_usage_error(segment, draw_image, options):
    done = segment(draw_image("in.png"), "out.png", *options)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert options[0] in error
    assert hint == "hint: esnet-segment --help"


def test_debug_shows_the_traceback(segment):
    done = segment("none.png", "out.png", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "source 'none.png' does not exist" in done.stderr


def test_without_a_backend_it_ends_with_3_and_the_pip_line(segment, draw_image, hide_library):
    hide_library("openvino", "onnxruntime")
    done = segment(draw_image("in.png"), "out.png")
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "error: no backend is installed"
    assert "pip install 'esnet-deploy[cpu]'" in done.stderr
