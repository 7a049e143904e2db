"""What is light stays light: each case runs in a new interpreter, with heavy libraries blocked."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("av", "torch", "onnx", "onnxruntime", "openvino", "safetensors", "tensorrt", "pycuda")


def run(code: str, *arguments: str, blocked: tuple[str, ...] = (), exit_code: int = 0) -> str:
    """Run Python code and get its output; what is blocked fails to import as if it were not installed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
    done = subprocess.run(
        [sys.executable, "-c", block + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("module", ["runtime", "esnet", "export", "benchmarks"])
def test_a_package_is_imported_with_the_standard_library_alone(module):
    run(f"import {module}", blocked=(*HEAVY, "numpy", "cv2", "typer", "rich"))


@pytest.mark.parametrize(
    "module", ["runtime.segmenter", "runtime.segment", "runtime.output.outputs"]
)
def test_the_runtime_needs_numpy_and_opencv_alone(module):
    run(f"import {module}", blocked=HEAVY)


@pytest.mark.parametrize("name", ["Segmenter", "ModelCard", "open_backend"])
def test_the_names_of_the_runtime_need_no_heavy_library(name):
    run(f"from esnet import {name}", blocked=HEAVY)


def test_every_public_name_can_be_imported():
    run("from esnet import *; import esnet; assert set(esnet.__all__) <= set(globals())")


def test_importing_the_package_takes_no_time():
    code = "import time; t = time.perf_counter(); import esnet; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize(
    ("module", "main", "arguments"),
    [
        pytest.param("runtime.cli", "segment_main", [], id="esnet-segment"),
        pytest.param("runtime.cli", "doctor_main", [], id="esnet-doctor"),
        pytest.param("export.cli", "main", [], id="esnet-export"),
        pytest.param("export.cli", "main", ["to-onnx"], id="esnet-export-to-onnx"),
        pytest.param("export.cli", "main", ["inspect"], id="esnet-export-inspect"),
        pytest.param("benchmarks.cli", "main", [], id="esnet-bench"),
        pytest.param("esnet.data.cli", "main", [], id="esnet-data"),
    ],
)
def test_help_works_with_numpy_and_typer_alone(module, main, arguments):
    text = run(
        f"from {module} import {main}; {main}()", *arguments, "--help", blocked=(*HEAVY, "cv2")
    )
    assert "Usage: " in text


@pytest.mark.parametrize(
    ("library", "extra"),
    [pytest.param("onnx", "export", id="onnx"), pytest.param("torch", "export", id="torch")],
)
def test_a_missing_library_is_named_with_its_pip_line(library, extra, tmp_path):
    code = "from export.cli import main; main()"
    arguments = ("to-onnx", "camvid", "-o", str(tmp_path / "model.onnx"))
    text = run(code, *arguments, blocked=(library,), exit_code=3)
    assert f"error: this command needs {library}, which is not installed" in text
    assert f"hint: pip install 'esnet-deploy[{extra}]'" in text
    assert "Traceback" not in text


def test_the_doctor_works_with_nothing_to_report():
    code = "from runtime.machine.doctor import diagnose; print(diagnose().can_run)"
    assert run(code, blocked=(*HEAVY, "numpy", "cv2")) == "False\n"


def test_import_esnet_loads_neither_numpy_nor_any_library():
    loaded = run("import esnet; print(*sys.modules)").split()
    assert not {*HEAVY, "numpy", "cv2"} & set(loaded)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "null"])
def test_segmenting_loads_neither_torch_nor_onnx(make_artefact, name):
    code = (
        "import numpy; from esnet import Segmenter; "
        "opened = Segmenter.open(sys.argv[1], backend=sys.argv[2]); "
        "opened.segment(numpy.zeros((64, 128, 3), numpy.uint8)); print(*sys.modules)"
    )
    loaded = run(code, str(make_artefact()), name).split()
    assert "runtime.segmenter" in loaded
    assert not {"torch", "onnx", "esnet.model", "export"} & set(loaded)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    run("import esnet; assert not hasattr(esnet, 'Segmentor')")


def test_the_packages_are_marked_as_typed():
    root = Path(__file__).parents[1]
    assert all((root / name / "py.typed").is_file() for name in ("esnet", "export", "runtime"))


def test_every_package_goes_into_the_wheel():
    root = Path(__file__).parents[1]
    listed = (root / "pyproject.toml").read_text().partition("packages = [")[2].partition("]")[0]
    found = {
        ".".join(file.parent.relative_to(root).parts)
        for name in ("benchmarks", "esnet", "export", "runtime")
        for file in (root / name).rglob("__init__.py")
    }
    assert found == set(listed.replace('"', "").replace(",", " ").split())
