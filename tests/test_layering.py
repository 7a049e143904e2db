"""Who may import whom: the table of the architecture, and one file for each vendor."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "esnet", "export", "runtime")
FORBIDDEN = {
    "runtime": {"torch", "onnx", "esnet", "export", "benchmarks"},
    "esnet": {"onnx", "tensorrt", "pycuda", "runtime", "export", "benchmarks"},
    "export": {"benchmarks", "pycuda"},
}
VENDORS = ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "cuda")


def imported(nodes) -> set[str]:
    """Top-level names of the packages that these statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names.add(node.module.partition(".")[0])
    return names


def files_of(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_that_lies_above_it(package):
    strays = {
        str(path.relative_to(ROOT)): names
        for path in files_of(package)
        if (names := imported(ast.walk(ast.parse(path.read_text()))) & FORBIDDEN[package])
    }
    assert strays == {}


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_is_imported_by_one_file_of_the_runtime(vendor):
    users = [
        path.relative_to(ROOT / "runtime").parts[0]
        for path in files_of("runtime")
        if vendor in imported(ast.walk(ast.parse(path.read_text())))
    ]
    assert set(users) <= {"backends", "cuda"}
    assert len(users) <= 2


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_backend_imports_its_vendor_plainly_at_its_top(name):
    tree = ast.parse((ROOT / "runtime" / "backends" / f"{name}.py").read_text())
    assert name in imported(tree.body)


@pytest.mark.parametrize("package", PACKAGES)
def test_our_package_is_the_one_that_is_imported(package):
    assert Path(importlib.import_module(package).__file__).parent == ROOT / package


def test_no_test_folder_is_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
