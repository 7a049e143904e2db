"""Record the classes and members of each TensorRT's Python bindings; this needs no GPU.

    python tests/record_trt_api.py [-o tests/trt_api.json]

The bindings are wheels of 1 MB on PyPI, but the libraries that they load take gigabytes. A stub library with
the few C functions that the bindings look up makes them importable, and ``dir()`` lists their members. Needs
pip, gcc and Python 3.11, the newest with wheels of 8.6.1. TensorRT-RTX is installed completely.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Version -> (wheel on PyPI, version suffix of the libraries that it loads).
VERSIONS = {
    "8.6.1": ("tensorrt-bindings==8.6.1", "8"),
    "10.0.1": ("tensorrt-cu12-bindings==10.0.1", "10"),
    "10.3.0": ("tensorrt-cu12-bindings==10.3.0", "10"),
    "10.9.0": ("tensorrt-cu12-bindings==10.9.0.34", "10"),
    "10.16.1": ("tensorrt-cu12-bindings==10.16.1.11", "10"),
    "11.0.0": ("tensorrt-cu13-bindings==11.0.0.114", "11"),
    "11.4.0": ("tensorrt-cu13-bindings==11.4.0.106", "11"),
}
RTX = "tensorrt-rtx==1.7.1.116"
_CLASS_NAMES = """
    Builder BuilderFlag ComputeCapability CudaGraphStrategy DataType EngineInspector
    ExecutionContextAllocationStrategy
    HardwareCompatibilityLevel IBuilderConfig ICudaEngine IExecutionContext IHostMemory ILogger
    INetworkDefinition IOptimizationProfile IProgressMonitor IRuntimeCache IRuntimeConfig ITensor ITimingCache
    LayerInformationFormat MemoryPoolType NetworkDefinitionCreationFlag OnnxParser ParserError
    PreviewFeature
    ProfilingVerbosity Runtime
"""
_FUNCTIONS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
]
_DUMP = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
table = {"__functions__": sorted(n for n in dir(module) if n in ("nptype",))}
for name in sys.argv[2:]:
    cls = getattr(module, name, None)
    if cls is not None:
        members = getattr(cls, "__members__", None)
        plain = sorted(n for n in dir(cls) if n[0] != "_")
        table[name] = {n: int(v) for n, v in members.items()} if members else plain
print(json.dumps(table))
"""


def main() -> None:
    """Record all versions in a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", type=Path, default=Path("tests/trt_api.json"), help="file to write")
    output = parser.parse_args().o
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for version, (wheel, suffix) in VERSIONS.items():
            table[version] = _recorded(Path(folder, version), wheel, suffix)
            print(f"{version}: {len(table[version])} classes", file=sys.stderr)
        target = Path(folder, "rtx")
        _run(sys.executable, "-m", "pip", "install", "-q", "--target", str(target), RTX)
        table["rtx 1.7.1"] = _dump("tensorrt_rtx", target, None)
    output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def _recorded(folder: Path, wheel: str, suffix: str) -> dict[str, object]:
    folder.mkdir()
    _run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), wheel)
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    source = folder / "stub.c"
    source.write_text(
        "#include <stddef.h>\n"
        + "".join(f"void* {name}(){{return NULL;}}\n" for name in _FUNCTIONS)
        + "int getNvOnnxParserVersion(){return 0;}\n"
        + "int initLibNvInferPlugins(void*a,const char*b){return 1;}\n"
    )
    for library in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin", "libnvparsers"):
        name = f"{library}.so.{suffix}"
        _run(
            "gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)
        )
    return _dump("tensorrt_bindings", folder, folder)


def _dump(module: str, path: Path, libraries: Path | None) -> dict[str, object]:
    environment = {"PYTHONPATH": str(path), "LD_LIBRARY_PATH": str(libraries or "")}
    done = subprocess.run(
        [sys.executable, "-c", _DUMP, module, *_CLASS_NAMES.split()],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    table: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return table


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
