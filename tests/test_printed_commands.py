"""Commands that messages print: their options exist, and paths in them are quoted for the shell."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from benchmarks.accuracy.evaluate import open_predictor
from benchmarks.errors import BenchmarkError
from benchmarks.models import _check_batches
from esnet.checkpoint import load_checkpoint
from esnet.errors import CheckpointError
from esnet.training.settings import RunResult
from export.engine.requests import check_request, rtx_int8_note
from export.engine.trt_builder import BuildOptions
from export.errors import BuildError
from export.metadata import with_card
from runtime.artefact.card import ModelCard
from runtime.backend import open_backend
from runtime.errors import EsnetError, InvalidInput
from runtime.files import require_outputs
from runtime.machine.gpus import sm_of
from tests.conftest import ROOT, entry_points
from tests.test_command_lines import command_named, parse

PROGRAMS = "|".join(entry_points())
SOURCES = [
    path
    for package in ("benchmarks", "esnet", "export", "runtime")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def is_quoted(value: ast.FormattedValue) -> bool:
    """True for a call of ``shlex.quote`` or ``shlex.join``."""
    function = getattr(value.value, "func", None)
    return isinstance(function, ast.Attribute) and ast.unparse(function).startswith("shlex.")


def unquoted_in(source: str) -> list[str]:
    """Formatted strings that put a value into a command as it is."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        text = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                text = str(part.value)
            elif re.search(rf"\b({PROGRAMS})( [^;:,]*)? ?$", text) and not is_quoted(part):
                found.append(ast.unparse(node))
    return found


def printed_in(source: str) -> list[str]:
    """Commands in string constants and in lists of words, with their options."""
    tree = ast.parse(source)
    found = [
        match[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for match in re.finditer(rf"\b({PROGRAMS})\b((?!{PROGRAMS}|, or )[^;\n])*", node.value)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple):
            words = [str(e.value) for e in node.elts if isinstance(e, ast.Constant)]
            if words and words[0] in entry_points():
                found.append(shlex.join(words))
    return found


def unknown_options(printed: str) -> list[str]:
    """Options of a printed command that it does not have."""
    name = re.match(PROGRAMS, printed)[0]
    rest = printed.removeprefix(name).strip()
    command = command_named(name)
    commands = getattr(command, "commands", {})
    command = commands.get(rest.split(" ")[0], commands.get("run", command))
    known = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {"--help"}
    return [word for word in re.findall(r"--[a-z][a-z0-9-]*", rest) if word not in known]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_messages_are_quoted_and_have_their_options(path):
    source = path.read_text()
    assert unquoted_in(source) == []
    wrong = {printed: unknown_options(printed) for printed in printed_in(source)}
    assert {printed: options for printed, options in wrong.items() if options} == {}


def test_a_command_with_a_wrong_option_or_an_unquoted_path_would_be_seen():
    assert unquoted_in('f"esnet-export to-onnx {path} --fp16"')
    assert not unquoted_in('f"esnet-export to-onnx {shlex.quote(path)}"')
    assert printed_in('"export it with: esnet-export to-onnx W --int8"') == [
        "esnet-export to-onnx W --int8"
    ]
    assert unknown_options("esnet-export to-onnx W --int8") == ["--int8"]
    assert "esnet-bench x.onnx --fp8" in printed_in('["esnet-bench", "x.onnx", "--fp8"]')


@pytest.fixture
def path(make_artefact, tmp_path) -> Path:
    """An artefact whose name and folder need quotes."""
    folder = tmp_path / "my models"
    folder.mkdir()
    path = folder / "it's $HOME.onnx"
    path.write_bytes(make_artefact().read_bytes())
    return path


def with_precision(path: Path, precision: str) -> Path:
    """Write the artefact under another precision, made from ``path``."""
    card = replace(
        ModelCard.from_file(path), precision=precision, quantization={"float_name": path.name}
    )
    other = path.with_name(f"it's {precision}.onnx")
    onnx.save(with_card(onnx.load(path), card), other)
    return other


def request(path: Path, precision: str) -> None:
    """Ask for an engine in a precision."""
    check_request(
        ModelCard.from_file(path),
        SimpleNamespace(kind="tensorrt"),
        BuildOptions(precision=precision),
        path,
    )


def test_every_hint_with_a_path_can_be_pasted_into_a_shell(path, tmp_path):
    weights = tmp_path / "my weights.pt"
    int8 = with_precision(path, "int8")
    for raises, error in [
        (lambda: load_checkpoint(path), CheckpointError),
        (lambda: request(path, "int8"), BuildError),
        (lambda: request(int8, "fp16"), BuildError),
        (lambda: open_backend(path, "tensorrt"), InvalidInput),
        (lambda: _check_batches(path, [99]), BenchmarkError),
        (lambda: open_predictor(weights, backend="openvino"), BenchmarkError),
        (lambda: require_outputs(tmp_path / "no folder" / "a.onnx"), InvalidInput),
        (lambda: require_outputs(path, suffixes=(".engine",)), InvalidInput),
    ]:
        with pytest.raises(error) as caught:
            raises()
        assert isinstance(caught.value, EsnetError)
        check_pasted(caught.value.hint, path.parent, tmp_path)


def check_pasted(text: str, *folders: Path) -> None:
    """Parse the commands of a text; every path in it is one word."""
    texts = re.split(r"; (?:then|for [^:]*)(?::|) ?", text)
    commands = [part[part.index("esnet-") :] for part in texts if "esnet-" in part]
    for command in commands:
        parse(command)
    words = [word for part in texts for word in shlex.split(part)]
    for word in words:
        if "/" in word:
            assert any(word.startswith(str(folder)) for folder in folders), word


def test_the_next_command_after_training_can_be_pasted(tmp_path):
    run = RunResult(run_dir=tmp_path / "my run", epochs=1, best_miou=None)
    command = run.as_text().partition("next      ")[2]
    parse(command)
    assert shlex.split(command)[-1] == str(tmp_path / "my run" / "best.ckpt")


def test_a_target_with_a_space_stays_one_word():
    words = ["esnet-export", "build-engine", "a.onnx", "--fp16", "--target", "RTX 3060"]
    command = shlex.join(words)
    parse(command)
    assert sm_of(shlex.split(command)[-1]) == (8, 6)


def test_the_command_of_a_note_can_be_pasted(path):
    int8 = with_precision(path, "int8")
    record = SimpleNamespace(
        card=ModelCard.from_file(int8), precision={"built": {"Float": 66}}, kernels={"count": 198}
    )
    command = rtx_int8_note(int8, record).partition("FP16: ")[2]
    parse(command)
    assert str(path) in shlex.split(command)
