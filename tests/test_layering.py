"""Who may import whom, no cycles, small modules and folders, and one file for each vendor."""

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "export", "esnet", "runtime")
"""Each may import itself and those behind it."""
LIGHT_MODULES = {
    "runtime.artefact.card_values",
    "runtime.artefact.untrusted",
    "runtime.console",
    "runtime.errors",
    "runtime.files",
    "runtime.machine.machine",
    "runtime.media.frames",
    "runtime.media.images",
    "runtime.media.sources",
}
"""Modules of ``runtime`` that ``esnet`` may import."""
FORBIDDEN_LIBRARIES = {
    "runtime": {"torch", "onnx"},
    "esnet": {"onnx", "tensorrt", "pycuda"},
    "export": {"pycuda"},
}
VENDORS = ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "cuda")
MAX_MODULES, MAX_LINES = 12, 350


def imported_modules(nodes) -> set[str]:
    """Full names of the modules that these statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported(nodes) -> set[str]:
    """Top-level names of the packages that these statements import."""
    return {name.partition(".")[0] for name in imported_modules(nodes)}


def files_of(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def import_graph() -> dict[str, set[str]]:
    """Each of our modules with those of ours that it imports, lazily or not."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in files_of(package)
    }
    return {
        name: {m for m in imported_modules(ast.walk(ast.parse(path.read_text()))) if m in modules}
        - {name}
        for name, path in modules.items()
    }


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_no_import_points_upwards():
    upward = {
        (module, target)
        for module, targets in import_graph().items()
        for target in targets
        if PACKAGES.index(package_of(target)) < PACKAGES.index(package_of(module))
    }
    assert {edge for edge in upward if edge[0] != "esnet"} == set()


def test_esnet_imports_light_modules_of_the_runtime_alone():
    imported_by_esnet = {
        target
        for module, targets in import_graph().items()
        for target in targets
        if module.startswith("esnet.") and package_of(target) == "runtime"
    }
    packages = {name.rpartition(".")[0] for name in LIGHT_MODULES}
    assert imported_by_esnet <= LIGHT_MODULES | packages


def test_the_import_graph_has_no_cycle():
    graph = import_graph()
    # A package that re-exports names lazily imports its own modules: that is no cycle at import time.
    del graph["runtime"], graph["esnet"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", FORBIDDEN_LIBRARIES)
def test_a_package_imports_none_of_its_forbidden_libraries(package):
    strays = {
        str(path.relative_to(ROOT)): names
        for path in files_of(package)
        if (names := imported(ast.walk(ast.parse(path.read_text()))) & FORBIDDEN_LIBRARIES[package])
    }
    assert strays == {}


def test_no_folder_has_too_many_modules():
    folders = {path.parent for package in PACKAGES for path in files_of(package)}
    crowded = {
        str(f.relative_to(ROOT)): n
        for f in folders
        if (n := len(list(f.glob("[!_]*.py")))) > MAX_MODULES
    }
    assert crowded == {}


def test_no_module_is_too_long():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in (*PACKAGES, "scripts")
        for path in files_of(package)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


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
