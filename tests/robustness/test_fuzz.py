"""Damaged input is accepted or refused in one line by every reader; files that once broke a reader, too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.artefact.untrusted import parse_json
from runtime.errors import InvalidInput
from runtime.media.sources import open_source
from tests.conftest import ROOT

CORPUS = Path(__file__).with_name("corpus")


def test_2000_damaged_inputs(tmp_path):
    words = ["--count", "2000", "--seed", "0", "--json", str(tmp_path / "fuzz.json")]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.robustness.fuzz", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    results = json.loads((tmp_path / "fuzz.json").read_text())
    assert results["cases"] == 2000
    for reader, counts in results["readers"].items():
        assert counts["refused" if reader != "options" else "accepted"] > 10, reader


@pytest.mark.parametrize(
    "name", sorted(path.name for path in CORPUS.iterdir() if path.suffix != ".json")
)
def test_a_file_that_once_broke_a_reader_gives_no_frame_or_sound_ones(name):
    try:
        source = open_source(CORPUS / name)
        frames = list(source)
    except InvalidInput:
        return
    assert source.skipped or frames


def test_deep_json_is_refused():
    with pytest.raises(ValueError, match="deep"):
        parse_json((CORPUS / "deep.json").read_bytes())
