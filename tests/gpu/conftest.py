"""Fixtures that open the GPU, and one result file per test in $ESNET_GPU_RESULTS.

Environment variables, set by scripts/gpu_check.sh:
    ESNET_REQUIRE_GPU=1: fail without a GPU instead of skipping, and if no test of a selected file ran.
    ESNET_GPU_RESULTS: folder for results; tests that passed there with the same source are skipped.
    ESNET_GPU_DATA: frames, an image folder or a video; default: generated scenes.
    ESNET_GPU_WEIGHTS: checkpoint, or the name of shipped weights; default: camvid.
    ESNET_GPU_SIZE: HEIGHTxWIDTH of frames and models; default: 512x1024.
    ESNET_GPU_QUICK=1: a tenth of the work or less.
    ESNET_GPU_MINUTES: no test starts in the last 2 minutes of this time; default: no limit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from functools import cache
from pathlib import Path

import pytest

from benchmarks.environment import describe_environment
from benchmarks.frames import load_frames
from benchmarks.report.tables import write_json, write_text
from runtime.cuda.device import CUDA_LIBRARIES, open_device
from runtime.errors import BackendUnavailable
from runtime.machine.machine import source_revision
from tests.gpu.checks import BASELINE, COMPILED, REFERENCE, SIZE_HW, import_or_skip

WEIGHTS = os.environ.get("ESNET_GPU_WEIGHTS", "camvid")
RESULT = pytest.StashKey[dict]()
IDLE = pytest.StashKey[dict]()
"""Test file -> why none of its tests ran; the files of which one ran are removed."""
REVISION = source_revision()
IS_REQUIRED = os.environ.get("ESNET_REQUIRE_GPU") == "1"
_MINUTES = float(os.environ.get("ESNET_GPU_MINUTES", "inf"))
DEADLINE = time.monotonic() + 60 * max(_MINUTES - 2, _MINUTES / 2)
"""Latest start of a test, by the monotonic clock; torch.compile takes up to 2 minutes."""


@pytest.fixture(scope="session", autouse=True)
def no_tf32():
    """Make torch compute fp32 in fp32: convolutions use TF32 by default."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="session")
def gpu():
    """Name and compute capability of the first GPU; without one, skip, or fail if ESNET_REQUIRE_GPU=1."""
    try:
        device = open_device()
    except BackendUnavailable as error:
        if IS_REQUIRED:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    device.close()
    return device.name, device.sm


@pytest.fixture(params=list(CUDA_LIBRARIES))
def device(gpu, request):
    """The GPU, opened with each CUDA library that is installed."""
    import_or_skip(CUDA_LIBRARIES[request.param].partition(":")[0])
    device = open_device(request.param)
    yield device
    device.close()


@pytest.fixture(scope="session")
def frames():
    """Frames of the model's size, RGB uint8 (H, W, 3)."""
    data = os.environ.get("ESNET_GPU_DATA")
    return load_frames(Path(data) if data else None, SIZE_HW).frames


@pytest.fixture(scope="session")
def export_artefact(gpu, tmp_path_factory):
    """Export the weights in a precision; each artefact is written once."""
    for name in ("torch", "onnx"):
        import_or_skip(name)
    from export.plan import ExportPlan
    from export.to_onnx import export_onnx

    folder = tmp_path_factory.mktemp("artefacts")

    @cache
    def export(precision):
        path = folder / f"{precision}.onnx"
        if precision == "int8":
            from export.quantization.quantize import QuantizeOptions, quantize

            quantize(export("fp32"), path, QuantizeOptions(scheme="tensorrt"))
            return path
        plan = ExportPlan(size_hw=SIZE_HW, precision=precision, optimized_for="tensorrt")
        export_onnx(WEIGHTS, path, plan, verify=False)
        return path

    return export


@pytest.fixture(scope="session")
def checkpoint(gpu):
    """The network and its normalisation."""
    import_or_skip("torch")
    from esnet.checkpoint import load_checkpoint

    return load_checkpoint(WEIGHTS)


@pytest.fixture(scope="session")
def cpu_labels(export_artefact, frames):
    """Class ids of the fp32 artefact on the CPU for every frame."""
    import_or_skip("onnxruntime")
    from runtime.backend import open_backend

    with open_backend(export_artefact("fp32"), "onnxruntime", precision="fp32") as backend:
        return [backend.infer(frame[None])[0][0] for frame in frames]


@pytest.fixture(scope="session")
def torch_labels(checkpoint, frames):
    """Class ids of torch fp32 for every frame; on the CPU if torch has no CUDA."""
    import torch

    from benchmarks.baselines.pipelines import torch_pipeline

    pipeline = torch_pipeline(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    return [pipeline(frame) for frame in frames]


@pytest.fixture(scope="session")
def torch_pipelines(checkpoint):
    """The torch baselines on the GPU, by name."""
    import torch

    from benchmarks.baselines.pipelines import torch_pipeline

    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no GPU: install a CUDA build of torch")
    fp16 = {"device": "cuda", "dtype": torch.float16, "channels_last": True}
    return {
        REFERENCE: torch_pipeline(checkpoint, device="cuda"),
        BASELINE: torch_pipeline(checkpoint, **fp16),
        COMPILED: torch_pipeline(checkpoint, **fp16, compiled=True),
    }


@pytest.fixture
def record(request):
    """Keep figures of the test for its result file: ``record(name=value)``."""
    return request.node.stash[RESULT]["figures"].update


def results_folder():
    if not (name := os.environ.get("ESNET_GPU_RESULTS")):
        return None
    Path(name).mkdir(parents=True, exist_ok=True)
    return Path(name)


def result_path(folder, item):
    name = re.sub(r"[^\w.-]+", "-", f"{item.path.stem}-{item.name}").strip("-")
    return folder / f"{name}.json"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a test that passed in an earlier run, before its fixtures are made."""
    folder = results_folder()
    path = result_path(folder, item) if folder else None
    revision = REVISION
    if path and path.is_file():
        earlier = json.loads(path.read_text())
        if (earlier["status"], earlier.get("revision")) == ("passed", revision):
            item.config.stash[IDLE].pop(item.path.stem, None)
            pytest.skip(f"already passed in {folder}")
    if time.monotonic() > DEADLINE:
        pytest.skip("no time left: run the same command again")
    start = {"status": "passed", "revision": revision, "seconds": 0.0, "figures": {}}
    item.stash[RESULT] = start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Write the result of a test after its teardown."""
    report = yield
    folder, idle = results_folder(), item.config.stash[IDLE]
    if report.when == "call" and not report.skipped:
        idle.pop(item.path.stem, None)
    elif report.skipped and item.path.stem in idle:
        idle[item.path.stem] = call.excinfo.exconly().removeprefix("Skipped: ")
    if folder and RESULT in item.stash:
        result = item.stash[RESULT]
        result["seconds"] = round(result["seconds"] + call.duration, 2)
        if not report.passed and result["status"] != "failed":
            reason = call.excinfo.exconly().removeprefix("Skipped: ")
            result.update(status=report.outcome, reason=reason)
        if report.when == "teardown":
            write_json(result_path(folder, item), result)
    return report


def pytest_configure(config):
    config.stash[IDLE] = {}


def pytest_collection_finish(session):
    here = [item for item in session.items if item.path.parent == Path(__file__).parent]
    session.config.stash[IDLE].update((item.path.stem, "") for item in here)


def pytest_terminal_summary(terminalreporter, config):
    """Name the files of which no test ran."""
    for name, reason in config.stash[IDLE].items() if IS_REQUIRED else ():
        terminalreporter.line(f"no test of {name} ran: {reason}; to leave it out: -k 'not {name}'")


def pytest_sessionfinish(session):
    """Write gpu_check.json and gpu_check.md: results of this run and of earlier ones."""
    if IS_REQUIRED and session.config.stash[IDLE] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if folder := results_folder():
        paths = sorted(folder.glob("test_*.json"))
        results = {path.stem: json.loads(path.read_text()) for path in paths}
        environment = describe_environment()
        write_json(folder / "gpu_check.json", {"environment": environment, "results": results})
        lines = ["# GPU check", "", *(f"- {name}: {text}" for name, text in environment.items())]
        lines += ["", "| test | figure | value |", "|---|---|---:|"]
        for name, result in results.items():
            rows = [(result["status"], f"{result['seconds']} s"), *rows_of(result["figures"])]
            rows += [("reason", result["reason"])] if "reason" in result else []
            label = name.replace("test_gpu_", "").replace("-test_", ": ").replace("_", " ")
            for figure, value in rows:
                cells = (
                    " ".join(cell.replace("|", "/").split()) for cell in (label, figure, value)
                )
                lines.append(f"| {' | '.join(cells)} |")
                label = ""
        write_text(folder / "gpu_check.md", "\n".join(lines) + "\n")


def rows_of(figures, prefix=""):
    """Flatten figures into rows of a name and a value."""
    for name, value in figures.items():
        text = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            yield from rows_of(value, f"{text}, ")
        else:
            yield text, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
