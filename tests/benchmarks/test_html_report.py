"""The HTML page is complete, self-contained, small and safe."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.errors import BenchmarkError
from benchmarks.frames import load_frames
from benchmarks.models import BenchOptions
from benchmarks.report.console import stage_tables
from benchmarks.report.page import page_from_report
from benchmarks.timing.suite import BenchReport, bench_models

SIZE = (64, 128)


@pytest.fixture(scope="module")
def report(make_artefact, quick) -> BenchReport:
    options = BenchOptions(backends=["onnxruntime", "openvino"], config=quick)
    return bench_models([make_artefact()], load_frames(None, SIZE), options)


class Tags(HTMLParser):
    """Collects the tags of a page and checks their nesting."""

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


def test_the_stages_tell_whether_the_frames_were_generated(report):
    real = dataclasses.replace(report, frames="4 frames of photos, 64x128")
    assert stage_tables(report)[0].title.endswith("one batch of 1 at a time, decoded from JPEGs")
    assert stage_tables(real)[0].title.endswith("one batch of 1 at a time")


def test_it_holds_verdict_tables_pictures_and_command(report):
    text = page_from_report(report)
    assert text.count("<svg") == 3
    for part in (
        "target 63 FPS",
        "Latency distribution",
        "Stage breakdown",
        "Precision, speed and accuracy",
        report.results[0].model.sha256,
        report.environment["revision"],
    ):
        assert part in text
    assert len(text.encode()) < 1.5e6


def test_names_from_files_cannot_inject(report):
    first = report.results[0]
    identity = dataclasses.replace(first.model, file="<script>alert(1)</script>.onnx")
    hostile = dataclasses.replace(first, model=identity)
    text = page_from_report(dataclasses.replace(report, results=(hostile,)))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_dollar_sign_in_a_name_is_no_formula(report):
    names = [r"$\frac$ a", r"b $\frac$"]
    results = tuple(
        dataclasses.replace(result, model=dataclasses.replace(result.model, name=name))
        for result, name in zip(report.results * 2, names, strict=False)
    )
    stages = {name: stage for name in names for stage in report.stages.values()}
    text = page_from_report(dataclasses.replace(report, results=results, stages=stages))
    assert r"$\frac$ a</text>" in text


@pytest.mark.parametrize("mode", ["throughput", "camera"])
def test_every_mode_has_its_page(make_artefact, quick, mode):
    options = BenchOptions(mode=mode, backends=["null"], config=quick)
    page = page_from_report(bench_models([make_artefact()], load_frames(None, SIZE), options))
    assert f": {mode}</h1>" in page


def test_without_its_libraries_it_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["missing.onnx", "--html", "report.html"])
    assert isinstance(result.exception, BenchmarkError)
    assert "--html needs jinja2 and matplotlib" in str(result.exception)
