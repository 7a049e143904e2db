"""Environments of the GPU tests: child processes with a real CUDA library over the stub of the driver.

By default, the cuda-bindings of this environment. ``scripts/gpu_rules.sh`` makes more environments and lists
their folders in $GPU_RULES_ENVIRONMENTS; then each test runs in all of them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import EngineRecord, write_engine
from runtime.machine.gpus import sm_text
from tests.cuda_stub.build import CannotBuild, build
from tests.fake_trt import GENERATIONS, build_plan, fake_tensorrt
from tests.gpu_rules.fakes import RTX
from tests.gpu_rules.rules import KINDS

ROOT = Path(__file__).parents[2]
SECONDS = 60
# Compute capability, and CUDA version of the driver, for each seed.
FULL = ((61, 11080), (75, 12020), (86, 12040), (89, 12090), (90, 13000))
FAST = ((89, 13000), (61, 12040))


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way to run a test."""

    environment: str
    """Name of the environment: ``here``, or KIND-VERSION."""
    seed: int
    """CUDA_STUB_SEED."""
    sm: int
    """CUDA_STUB_SM."""
    driver: int
    """CUDA_STUB_VERSION."""

    @property
    def kind(self) -> str:
        """What the environment is for: ``cuda-bindings``, ``pycuda`` or ``onnxruntime-gpu``."""
        return (
            "cuda-bindings" if self.environment == "here" else self.environment.rpartition("-")[0]
        )

    @property
    def library(self) -> str:
        """CUDA library: a key of ``CUDA_LIBRARIES``."""
        return "pycuda" if self.kind == "pycuda" else "cuda-bindings"

    def __str__(self) -> str:
        return f"{self.environment}-seed{self.seed}-sm{self.sm}-cuda{self.driver}"


def setups() -> list[Setup]:
    """List the setups of this run."""
    folders = environments()
    return [
        Setup(environment=name, seed=seed, sm=sm, driver=driver)
        for name in folders
        for seed, (sm, driver) in enumerate(FAST if "here" in folders else FULL)
    ]


def environments() -> dict[str, str]:
    """Get the Python interpreter of each environment, by name."""
    folders = os.environ.get("GPU_RULES_ENVIRONMENTS")
    if not folders:
        return {"here": sys.executable}
    return {Path(folder).name: f"{folder}/bin/python" for folder in folders.split(os.pathsep)}


class Child:
    """A process that runs tests in forks; see ``tests.gpu_rules.child``."""

    def __init__(self, python: str, library: str, stub: Path, folder: Path) -> None:
        self.python, self.stub = python, stub
        self._log = folder / "stub.log"
        self._errors = (folder / "stderr").open("w+")
        paths = [str(stub), str(stub / "vendor")]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CUDA_STUB")},
            "LD_LIBRARY_PATH": os.pathsep.join(paths),
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder),
        }
        module = {"pycuda": "pycuda.driver", "cuda-bindings": "cuda.bindings.driver"}[library]
        self._process = subprocess.Popen(
            [python, "-m", "tests.gpu_rules.child", library, module],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a test in a fork and get its answer."""
        self._log.unlink(missing_ok=True)
        request["environment"]["CUDA_STUB_LOG"] = str(self._log)
        process = self._process
        assert process.stdin
        assert process.stdout
        watch = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            self._errors.seek(0)
            pytest.fail(f"the child ended: {self._errors.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)
        self._errors.close()


class Gpu:
    """Runs the body of a test in a child, and checks what it leaves behind."""

    def __init__(self, child: Child, setup: Setup) -> None:
        self._child, self._setup = child, setup
        self.python, self.stub, self.root = child.python, child.stub, ROOT
        self.library = setup.library
        self._environment = {
            "CUDA_STUB_SEED": str(setup.seed),
            "CUDA_STUB_SM": str(setup.sm),
            "CUDA_STUB_VERSION": str(setup.driver),
        }

    @property
    def site_packages(self) -> Path:
        """Folder of the packages of the child's environment."""
        (folder,) = Path(self.python).parents[1].glob("lib/python*/site-packages")
        return folder

    def __hash__(self) -> int:
        return hash(self._setup)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gpu) and self._setup == other._setup

    def run(self, test: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the body of a test that ``on_stub`` made."""
        file = Path(test.body.__code__.co_filename)
        arguments = {name: str(a) if isinstance(a, Path) else a for name, a in arguments.items()}
        return self._child.ask(
            {
                "module": ".".join(file.relative_to(ROOT).with_suffix("").parts),
                "test": test.__name__,
                "arguments": arguments,
                "environment": {**self._environment, **(test.environment or {})},
            }
        )

    def check(self, test: Any, arguments: dict[str, Any]) -> Any:
        """Run a body, expect that it passes and leaves nothing, and get its result."""
        answer = self.run(test, arguments)
        if answer["error"]:
            pytest.fail("\n".join([answer["error"], *answer.get("log", [])]), pytrace=False)
        if not test.left:
            assert answer["left"] == {}
        pattern = test.log
        assert [line for line in answer["log"] if not (pattern and re.search(pattern, line))] == []
        return answer["result"]


@pytest.fixture(scope="session")
def stub_folder(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The compiled stub, or a skip with the reason."""
    cache = getattr(pytestconfig, "cache", None)
    try:
        return build(Path(cache.mkdir("cuda_stub")) if cache else tmp_path_factory.mktemp("stub"))
    except CannotBuild as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def onnx_file(make_artefact: Callable[..., Path]) -> Path:
    """A small artefact with labels and confidence."""
    return make_artefact(outputs=("labels", "confidence"))


@pytest.fixture(scope="session")
def half_file(make_artefact: Callable[..., Path]) -> Path:
    """A small FP16 artefact; in ONNX Runtime, its second run of a larger size allocates."""
    return make_artefact(precision="fp16")


@pytest.fixture(scope="session")
def engines(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine of every fake TensorRT for SM 8.6, and ``gtx10xx.engine`` for SM 6.1."""
    folder = tmp_path_factory.mktemp("engines")
    card = ModelCard.from_file(onnx_file)
    made = {generation: (generation, (8, 6)) for generation in (*GENERATIONS, RTX)}
    for name, (version, sm) in {**made, "gtx10xx": ("8.6.1", (6, 1))}.items():
        module = fake_tensorrt(version, sm=sm)
        plan = build_plan(module, onnx_file.read_bytes(), card.batch)
        record = EngineRecord(
            card=card,
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            onnx={"name": "small.onnx", "sha256": "0" * 64},
            tensorrt={
                "kind": "tensorrt-rtx" if name == RTX else "tensorrt",
                "version": module.__version__,
            },
            target={"sms": [sm_text(sm)]},
            precision={"asked": "fp32", "built": {}},
            profile=card.batch,
            kernels={},
            build={"command": "esnet-export build-engine small.onnx"},
        )
        write_engine(folder / f"{name}.engine", plan, record)
    return folder


@pytest.fixture(scope="session")
def children(
    stub_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Setup], Child]]:
    """One child process for each environment."""
    started: dict[str, Child] = {}

    def child_for(setup: Setup) -> Child:
        name = setup.environment
        if name not in started:
            work = tmp_path_factory.mktemp(name)
            started[name] = Child(environments()[name], setup.library, stub_folder, work)
        return started[name]

    yield child_for
    for child in started.values():
        child.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test in the setups that it asks for; see ``on_stub``."""
    if "gpu" in metafunc.fixturenames:
        only = getattr(metafunc.function, "only", KINDS)
        chosen = [setup for setup in setups() if setup.kind in only]
        if getattr(metafunc.function, "once", False):
            chosen = [setup for setup in chosen if setup.seed == 0]
        skip = pytest.mark.skip(reason=f"needs {only[0]}: make gpu-rules runs it")
        parameters = chosen or [pytest.param(None, marks=skip)]
        metafunc.parametrize("gpu", parameters, ids=str, indirect=True)


@pytest.fixture
def gpu(request: pytest.FixtureRequest, children: Callable[[Setup], Child]) -> Gpu:
    """A child with a CUDA library over the stub, once for every setup."""
    setup: Setup = request.param
    if setup.environment == "here" and not _has_bindings():
        pytest.skip("cuda-bindings is not installed")
    for mark in request.node.iter_markers("defect"):
        if mark.kwargs.get("library", setup.library) == setup.library:
            request.applymarker(pytest.mark.xfail(reason=mark.args[0], strict=True))
    return Gpu(children(setup), setup)


def _has_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark of known defects."""
    config.addinivalue_line(
        "markers", "defect(reason, library=...): strict xfail, with one CUDA library if it is named"
    )
