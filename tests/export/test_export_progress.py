"""What is shown while an engine is built."""

import threading
import time

import pytest

from export import report
from export.engine.progress import BuildProgress


@pytest.fixture
def build():
    """A progress of 3 nested phases."""
    progress = BuildProgress()
    progress.start("Building engine", None, 4)
    progress.step("Building engine", 0)
    progress.start("Optimizing graph", "Building engine", 2)
    progress.start("Timing tactics", "Optimizing graph", 10)
    return progress


def test_nested_phases_share_the_step_that_they_are_in(build):
    assert (build.share, build.phase) == (0.25, "Timing tactics")
    build.step("Timing tactics", 4)
    assert build.share == 0.25 + 0.5 / 2 / 4


def test_the_share_does_not_fall_when_a_phase_ends_before_its_step(build):
    build.step("Timing tactics", 9)
    assert build.share == 0.375
    build.finish("Timing tactics")
    assert (build.share, build.phase) == (0.375, "Optimizing graph")
    build.step("Optimizing graph", 0)
    assert build.share == 0.375
    build.step("Building engine", 3)
    assert build.share == 1.0


def test_a_cancelled_build_ends_with_its_next_step(build):
    assert build.step("Timing tactics", 1) is True
    build.cancel()
    assert build.step("Timing tactics", 2) is False


@pytest.mark.parametrize(("share", "text"), [(True, ", 25 % of the steps: Timing"), (False, "")])
def test_without_a_terminal_a_line_tells_how_far_it_is(build, monkeypatch, capsys, share, text):
    monkeypatch.setattr(report, "_HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(report, "_TICK_SECONDS", 0.01)
    thread = threading.Thread(target=lambda: time.sleep(0.05))
    thread.start()
    report.wait_for_build(thread, build if share else BuildProgress())
    assert capsys.readouterr().err.splitlines()[0].startswith(f"building for 0 s{text}")
