"""Shared CLI helpers: sizes, batches, and error reports."""

import os
import signal
import subprocess
import sys
from typing import Annotated, Literal

import pytest
import typer

from runtime.console import command, new_app, parse_batch, parse_bytes, parse_size, run_app
from runtime.errors import BackendUnavailable, InvalidInput
from runtime.files import atomic_path


@pytest.mark.parametrize(
    ("text", "size_hw"),
    [("512x1024", (512, 1024)), ("8X8", (8, 8)), ("1080x1920", (1080, 1920))],
)
def test_a_size_is_height_then_width(text, size_hw):
    assert parse_size(text) == size_hw


@pytest.mark.parametrize("text", ["", "512", "512x", "512*1024", "-8x8", "8.0x8", "8x8x8", " 8x8"])
def test_a_size_of_another_form_is_refused(text):
    with pytest.raises(InvalidInput, match="is not HEIGHTxWIDTH"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("510x1024", "512x1024"), ("0x8", "8x8"), ("512x1027", "512x1024"), ("3x13", "8x16")],
)
def test_a_size_that_is_no_multiple_of_8_gets_the_nearest(text, nearest):
    with pytest.raises(InvalidInput, match="must be multiples of 8") as refusal:
        parse_size(text)
    assert refusal.value.hint == f"the nearest is --size {nearest}"


@pytest.mark.parametrize(
    ("text", "hint"),
    [("512", "for example --crop 512x1024"), ("510x1024", "the nearest is --crop 512x1024")],
)
def test_the_hint_names_the_option_of_the_command(text, hint):
    with pytest.raises(InvalidInput) as refusal:
        parse_size(text, "--crop")
    assert refusal.value.hint == hint


@pytest.mark.parametrize(
    ("text", "batch"), [("1:1:8", (1, 1, 8)), ("4", (4, 4, 4)), ("2:2:2", (2, 2, 2))]
)
def test_a_batch_is_a_range_or_a_number(text, batch):
    assert parse_batch(text) == batch


@pytest.mark.parametrize("text", ["", "1:8", "1:2:3:4", "a", "1:-1:8", "1::8", "1.5"])
def test_a_batch_of_another_form_is_refused(text):
    with pytest.raises(InvalidInput, match="neither N nor MIN:OPT:MAX"):
        parse_batch(text)


@pytest.mark.parametrize("text", ["0", "0:1:2", "2:1:3", "1:3:2"])
def test_a_batch_that_does_not_rise_from_one_is_refused(text):
    with pytest.raises(InvalidInput, match="1 <= MIN <= OPT <= MAX"):
        parse_batch(text)


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("2GiB", 2 << 30), ("512MB", 512_000_000), ("1048576", 1 << 20)]
)
def test_bytes_have_a_unit_or_are_many(text, num_bytes):
    assert parse_bytes(text) == num_bytes


def test_a_number_without_its_unit_is_refused():
    with pytest.raises(InvalidInput, match="size '2' is 2 bytes") as refusal:
        parse_bytes("2")
    assert refusal.value.hint == "did you mean --workspace 2GiB?"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Keep what a command line sets for its own process away from this one."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an app that raises; get its exit code and what it printed as errors."""

    def run(error, *arguments):
        def app():
            raise error

        monkeypatch.setattr(sys, "argv", ["tool", *arguments])
        with pytest.raises(SystemExit) as end:
            run_app(app)
        return end.value.code, capsys.readouterr().err

    return run


def test_an_error_of_ours_is_a_line_and_a_hint(run):
    code, text = run(InvalidInput("the frame\n is blue", hint="paint it red"))
    assert (code, text) == (2, "error: the frame is blue\nhint: paint it red\n")


def test_an_error_without_a_hint_is_a_line(run):
    assert run(InvalidInput("blue")) == (2, "error: blue\n")


def test_a_missing_library_ends_with_3(run):
    assert run(BackendUnavailable("no openvino"))[0] == 3


def test_an_error_of_the_system_names_the_file(run):
    code, text = run(PermissionError(13, "Permission denied", "/x/a.png"))
    error, hint = text.splitlines()
    assert (code, error) == (2, "error: Permission denied: /x/a.png")
    assert hint.startswith("hint: check that the path exists")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "missing argument 'name'", id="missing"),
        pytest.param(["a", "--foo"], "no such option", id="unknown"),
        pytest.param(["a", "--kind"], "option '--kind' requires an argument", id="no-value"),
        pytest.param(
            ["a", "--kind", "z"], "invalid value for '--kind': 'z' is not one", id="choice"
        ),
    ],
)
def test_a_usage_error_is_a_line_and_a_hint(monkeypatch, capsys, arguments, message):
    app = typer.Typer()

    @app.command()
    def run(name: str, kind: Literal["x", "y"] = "x") -> None:
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    error, hint = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert error.lower().startswith(f"error: {message}")
    assert hint.startswith("hint: ")
    assert hint.endswith("tool --help")


def test_the_exit_code_of_a_command_is_that_of_the_process(monkeypatch):
    app = typer.Typer()

    @app.command()
    def run() -> None:
        raise typer.Exit(1)

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(ValueError, match="shapes"):
        run_app(lambda: int("shapes"))


def test_debug_adds_the_traceback_and_keeps_the_exit_code(run):
    code, text = run(BackendUnavailable("no openvino", hint="install it"), "--debug", "x")
    assert code == 3
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("\nerror: no openvino\nhint: install it\n")
    assert sys.argv == ["tool", "x"]


def test_an_app_that_returns_ends_with_0(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as end:
        run_app(lambda: None)
    assert end.value.code == 0


def test_text_of_a_file_cannot_control_the_terminal_or_flood_it(run):
    _, text = run(InvalidInput("\x1b[31mred" + "x" * 10_000 + "end", hint="\x1b]0;title\x07"))
    error, hint = text.splitlines()
    assert error.startswith("error: \ufffd[31mredxx")
    assert error.endswith("xend")
    assert len(error) < 650
    assert hint == "hint: \ufffd]0;title\ufffd"


def test_a_name_that_is_not_utf8_is_printable(tmp_path):
    code = (
        "import os; from runtime.console import run_app; from runtime.errors import InvalidInput\n"
        "def app(): print(os.fsdecode(b'\\xff.png')); raise InvalidInput(os.fsdecode(b'\\xff.png'))\n"
        "run_app(app)"
    )
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (end.returncode, end.stdout) == (2, b"\\udcff.png\n")
    assert end.stderr == "error: \ufffd.png\n".encode()


def test_memory_that_cannot_be_had_is_an_error_line(run):
    code, text = run(MemoryError())
    assert (code, text.splitlines()[0]) == (2, "error: out of memory")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_its_code_and_without_temporary_files(tmp_path, number, code):
    def work():
        with atomic_path(tmp_path / "a.onnx"):
            os.kill(os.getpid(), number)
            pytest.fail("the signal must end the block")

    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            run_app(work)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert end.value.code == code
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["1:1:99999", f"1:1:{10**20}", "9" * 5000])
def test_a_batch_beyond_reason_is_refused(text):
    with pytest.raises(InvalidInput, match="batch"):
        parse_batch(text)


@pytest.mark.parametrize("text", ["99992x8", f"8x{10**20}", f"{'9' * 5000}x8"])
def test_a_size_beyond_reason_is_refused(text):
    with pytest.raises(InvalidInput, match="size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_an_option_that_is_no_number_is_refused(monkeypatch, capsys, text):
    app = new_app("Test.")

    @command(app, examples=(), groups={})
    def run(*, rate: Annotated[float, typer.Option(max=5.0)] = 1.0) -> None:
        """Run."""
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["tool", f"--rate={text}"])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == 2
    assert "rate" in capsys.readouterr().err


def test_a_signal_keeps_its_code_if_a_library_makes_another_error_of_it(monkeypatch):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 0)  # the handler runs here at the latest
        except SystemExit:
            raise BackendUnavailable("initialization failed") from None

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as end:
        run_app(work)
    assert end.value.code == 143
