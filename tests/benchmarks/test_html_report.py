"""The page: whole, self-contained, small, and safe."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.frames import load_frames
from benchmarks.report.page import page_from_report, waterfall_picture, write_page
from benchmarks.session import Outputs
from benchmarks.timing.suite import BenchOptions, BenchReport, bench_models

SIZE = (64, 128)


@pytest.fixture(scope="module")
def report(make_artefact, quick) -> BenchReport:
    options = BenchOptions(backends=["onnxruntime", "openvino"], protocol=quick)
    return bench_models([make_artefact()], load_frames(None, SIZE), options)


class Tags(HTMLParser):
    """Collects the tags of a page, and refuses ones that are closed in the wrong order."""

    void = ("meta", "link", "path", "use", "rect", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(report):
    tags = Tags()
    tags.feed(page_from_report(report))
    assert tags.open == []
    assert not [tag for tag, _ in tags.seen if tag in ("script", "img", "iframe")]
    for _, attributes in tags.seen:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_it_holds_verdict_tables_pictures_and_command(report, tmp_path):
    write_page(report, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert text.count("<svg") == 3
    for part in (
        "target 63 FPS",
        "How latency is distributed",
        "Where the time of a frame goes",
        "Precision, speed and accuracy",
        report.results[0].sha256,
        report.environment["revision"],
    ):
        assert part in text
    assert (tmp_path / "r.html").stat().st_size < 1.5e6


def test_names_from_files_cannot_inject(report):
    hostile = dataclasses.replace(report.results[0], model="<script>alert(1)</script>.onnx")
    text = page_from_report(dataclasses.replace(report, results=(hostile,)))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("mode", ["throughput", "camera"])
def test_every_mode_has_its_page(make_artefact, quick, mode):
    options = BenchOptions(mode=mode, backends=["null"], protocol=quick)
    page = page_from_report(bench_models([make_artefact()], load_frames(None, SIZE), options))
    assert f": {mode}</h1>" in page


def test_a_waterfall_is_drawn_alone(report, tmp_path):
    result = report.results[0]
    waterfall_picture(result.name, result.waterfall, 15.87, tmp_path / "w.svg")
    assert "<svg" in (tmp_path / "w.svg").read_text()


def test_without_its_libraries_it_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match="--html needs jinja2 and matplotlib"):
        Outputs(html_path=Path("report.html")).check()
