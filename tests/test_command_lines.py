"""What all commands have in common: version, grouped options, examples, completion."""

from __future__ import annotations

import shlex
from functools import cache
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import typer

from tests.conftest import entry_points

COMMON = {"version", "debug", "help", "install_completion", "show_completion"}


@cache
def command_named(name: str) -> Any:
    """The parsed command of an entry point."""
    module, function = entry_points()[name].split(":")
    with mock.patch(f"{module}.run_app") as run_app:
        getattr(import_module(module), function)()
    (app,) = run_app.call_args.args
    return typer.main.get_command(app)


def leaves() -> dict[str, Any]:
    """Every command that does something, by the words that run it."""
    found = {}
    for name in entry_points():
        root = command_named(name)
        for sub, command in getattr(root, "commands", {"": root}).items():
            found[f"{name} {sub}".rstrip()] = command
    return found


def parse(line: str) -> None:
    """Parse a command line as the command does, without running it."""
    name, *words = shlex.split(line)
    command = command_named(name)
    context = command.make_context(name, words)
    while hasattr(command, "commands"):
        words = [*context._protected_args, *context.args]
        _, command, words = command.resolve_command(context, words)
        context = command.make_context(command.name, words, parent=context)


LEAVES = leaves()


@pytest.mark.parametrize("words", [*entry_points(), *LEAVES])
def test_every_command_has_a_version(invoke, words):
    done = invoke(*words.split(), "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("esnet-deploy ")


@pytest.mark.parametrize("words", LEAVES)
def test_every_option_is_in_a_group(words):
    options = [p for p in LEAVES[words].params if p.param_type_name == "option"]
    assert [p.name for p in options if p.name not in COMMON and not p.rich_help_panel] == []
    assert {"version", "debug"} <= {p.name for p in options}


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_shows_two_examples_that_it_accepts(words):
    name = words.removesuffix(" run")
    examples = [line for line in LEAVES[words].epilog.split("\n\n") if line.startswith(name)]
    assert len(examples) >= 2
    for example in examples:
        parse(example.partition(" > ")[0])


def test_an_example_with_a_wrong_option_would_be_seen():
    with pytest.raises(Exception, match="No such option: --calibrate"):
        parse("esnet-export quantize camvid.onnx --calibrate photos/")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("esnet-export quan", "quantize", id="command"),
        pytest.param("esnet-export quantize --calib", "--calibration", id="option"),
        pytest.param("esnet-export quantize --method ent", "entropy", id="value"),
        pytest.param("esnet-bench roof", "roofline", id="command of a group with a default"),
        pytest.param("esnet-segment --alp", "--alpha", id="single command"),
    ],
)
def test_the_shell_completes(invoke, monkeypatch, words, expected):
    name = words.split()[0]
    monkeypatch.setenv(f"_{name.replace('-', '_').upper()}_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    done = invoke(name)
    assert (done.returncode, done.stdout.split()) == (0, [expected])
