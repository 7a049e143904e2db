from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT

DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not {".venv", "build", "out", "node_modules"} & set(path.parts)
]
SUBCOMMANDS = ("to-onnx", "inspect", "build-engine", "quantize", "compare", "diff", "roofline")


def commands() -> list[list[str]]:
    """Every ``esnet-*`` line of the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("esnet-")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_option_in_the_readme_exists(command, invoke, monkeypatch):
    for name, value in {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    subcommand = [word for word in command[1:2] if word in SUBCOMMANDS]
    result = invoke(command[0], *subcommand, "--help")
    options = [word for word in command if re.match(r"--?[a-z]", word)]
    assert result.returncode == 0
    assert [option for option in options if option not in result.stdout] == []


def test_the_readme_commands_work_one_after_the_other(tmp_path, invoke):
    from esnet.data.scenes import street_scene
    from runtime.output.images import write_image

    (tmp_path / "photos").mkdir()
    for name in ("photos/a.png", "photos/b.png", "photo.png"):
        write_image(tmp_path / name, street_scene((64, 128)).image)
    small = {
        "to-onnx": ["--size", "64x128"],
        "roofline": ["--size", "64x128", "--no-measure"],
        "diff": ["--max-slower", "900%"],  # of two runs of 0.1 s
    }
    bench = ["--size", "64x128", "--max-seconds", "0.1"]
    for command in commands():
        if any(word.startswith(("drive", "../shared")) for word in command) or "bf16" in command:
            continue  # needs a video, a dataset, or a CPU with bf16
        subcommand = "".join(command[1:2])
        is_bench = command[0] == "esnet-bench" and subcommand not in SUBCOMMANDS
        extra = bench if is_bench else small.get(subcommand, [])
        result = invoke(*command, *extra, cwd=tmp_path)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        if "today.json" in command:
            (tmp_path / "yesterday.json").write_bytes((tmp_path / "today.json").read_bytes())


def test_no_local_path_is_committed():
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "grep", "-lE", r"/root/|/home/[a-z]"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [name for name in listing.stdout.split() if name != "tests/test_readme.py"] == []
