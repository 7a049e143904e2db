"""Compile the stub of the CUDA driver, and stand-ins of the libraries that ONNX Runtime loads.

    python -m tests.cuda_stub.build FOLDER      # prints the folder of libcuda.so.1

The headers come from the wheels nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-profiler-api.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
VENDOR_LIBRARIES = {
    "libcudart.so.13": "CUDART",
    "libcublas.so.13": "CUBLAS",
    "libcublasLt.so.13": "CUBLASLT",
    "libcudnn.so.9": "CUDNN",
    "libcurand.so.10": "CURAND",
}
# Newest form of a call whose name has no version suffix, and the CUDA version that introduced it.
_RENAMED = {"cuGraphInstantiate": 12000}


class CannotBuild(Exception):
    """A reason why the stub cannot be built on this machine."""


def headers() -> Path:
    """Find the folder of ``cuda.h``.

    Raises:
        CannotBuild: The wheels with the headers are not installed.
    """
    for entry in sys.path:
        folder = Path(entry or ".") / "nvidia" / "cu13" / "include"
        names = ("cuda.h", "cuda_runtime_api.h", "crt/host_defines.h", "cudaProfiler.h")
        if all((folder / name).is_file() for name in names):
            return folder
    raise CannotBuild(
        "no CUDA headers: pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-profiler-api"
    )


def build(cache: Path) -> Path:
    """Compile everything once for each state of the sources and headers.

    Args:
        cache: Folder that keeps the results.

    Returns:
        Folder with ``libcuda.so.1`` and, under ``vendor/``, the libraries of ``VENDOR_LIBRARIES``.

    Raises:
        CannotBuild: Not Linux on x86-64, no compiler, or no headers.
        subprocess.CalledProcessError: The compiler failed.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise CannotBuild(f"the stub needs Linux on x86-64, this is {sys.platform}")
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotBuild("no C compiler: cc is not on PATH")
    include = headers()
    sources = sorted([*HERE.glob("*.c"), Path(__file__), *include.glob("cuda*.h")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = cache / f"cuda-stub-{digest}"
    if folder.is_dir():
        return folder
    work = cache / f"cuda-stub-{digest}.{os.getpid()}"
    (work / "vendor").mkdir(parents=True)

    def cc(*arguments: object) -> None:
        flags = ["-std=gnu11", "-O1", "-g", "-fPIC", "-isystem", str(include)]
        subprocess.run([compiler, *flags, *map(str, arguments)], check=True)

    cc(
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-c",
        "-o",
        work / "stub.o",
        HERE / "cuda_stub.c",
    )
    (work / "tables.c").write_text(_tables(include, work / "stub.o"))
    cc("-w", "-c", "-o", work / "tables.o", work / "tables.c")
    driver = work / "libcuda.so.1"
    soname = "-Wl,-soname,libcuda.so.1"
    cc(
        "-shared",
        soname,
        "-Wl,-z,defs",
        "-o",
        driver,
        work / "stub.o",
        work / "tables.o",
        "-lpthread",
    )
    (work / "libcuda.so").symlink_to(driver.name)
    for name, macro in VENDOR_LIBRARIES.items():
        source = HERE / ("cudart_stub.c" if macro == "CUDART" else "vendor_stubs.c")
        version = work / f"{name}.map"
        version.write_text(f"{name} {{ global: *; }};\n")
        link = [f"-Wl,-soname,{name}", f"-Wl,--version-script={version}", "-lpthread"]
        cc("-w", "-shared", f"-D{macro}", "-o", work / "vendor" / name, source, driver, *link)
    try:
        work.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(work)
    return folder


def _tables(include: Path, compiled: Path) -> str:
    """Write the C tables of the driver's entry points and errors, and a function for each missing call."""
    names = ("cuda", "cudaProfiler", "cudaGL", "cudaEGL", "cudaVDPAU")
    header, typedefs = (
        "".join(f.read_text() for name in names if (f := include / f"{name}{end}.h").exists())
        for end in ("", "Typedefs")
    )
    symbols_text = subprocess.run(
        ["nm", str(compiled)], capture_output=True, text=True, check=True
    ).stdout
    defined = set(re.findall(r" T (cu\w+)$", symbols_text, re.M)) - {"cuda_stub_missing"}
    declared = set(re.findall(r"CUDAAPI\s+(cu[A-Z]\w*)\s*\(", header))
    newest = dict(re.findall(r"#define\s+(cu\w+)\s+(?:__CUDA_API_PT[DS][SZ]\()?(cu\w+)\)?", header))
    declared |= set(newest.values())

    versions = defaultdict(set)
    for base, version in re.findall(r"PFN_(cu[A-Z]\w*?)_v(\d+)(?:_pt[ds][sz])?\)", typedefs):
        versions[base].add(int(version))
    entries = [(base, version, newest[base]) for base, version in _RENAMED.items()]
    for base, numbers in versions.items():
        for place, version in enumerate(sorted(numbers), 1):
            symbol = base if place == 1 else f"{base}_v{place}"
            if version == max(numbers) and base not in _RENAMED:
                known = symbol if symbol in defined | declared else base
                symbol = newest.get(base, known)
            entries.append((base, version, symbol))
    symbols = declared | defined | {symbol for _, _, symbol in entries}
    symbols = {re.sub(r"_pt[ds][sz]$", "", name) for name in symbols}
    text = typedefs + header
    threaded = {name for name in declared if re.search(r"_pt[ds][sz]$", name)}
    threaded |= {f"{n}_{end}" for n in symbols for end in ("ptds", "ptsz") if f"{n}_{end}" in text}
    errors = re.search(r"typedef enum cudaError_enum \{(.*?)\} CUresult;", header, re.S)
    assert errors, "cuda.h has no CUresult"

    lines = ["extern int cuda_stub_missing(const char *);"]
    lines += [
        f'int {name}(void) {{ return cuda_stub_missing("{name}"); }}'
        for name in sorted(symbols - defined)
    ]
    lines += [f"extern int {name}();" for name in sorted(symbols & defined)]
    # The per-thread default stream is not told apart from the legacy one.
    lines += [
        f'__asm__(".globl {name}\\n.type {name},@function\\n{name}: jmp {name[:-5]}@PLT\\n");'
        for name in sorted(threaded)
    ]
    lines.append(
        "const struct entry { const char *base, *symbol; int version; void *address; } "
        "cuda_stub_entries[] = {"
    )
    lines += [
        f'    {{"{base}", "{symbol}", {version}, (void *){symbol}}},'
        for base, version, symbol in sorted(entries)
    ]
    lines.append("    {0, 0, 0, 0},\n};")
    lines.append("const struct name { int code; const char *name; } cuda_stub_errors[] = {")
    lines += [
        f'    {{{code}, "{name}"}},'
        for name, code in re.findall(r"(CUDA_\w+)\s*=\s*(\d+)", errors[1])
    ]
    lines.append("    {0, 0},\n};\n")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1])))
    except CannotBuild as reason:
        sys.exit(f"error: {reason}")
