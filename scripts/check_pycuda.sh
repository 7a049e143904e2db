#!/bin/sh
# Build PyCUDA on a machine with a CUDA toolkit but no GPU, and check that it has every name that we use:
#   scripts/check_pycuda.sh [FOLDER]      (about 3 minutes; needs nvcc, g++ and pip)
# PyCUDA links against libcuda, which comes with the driver. A stub library with the same symbols replaces it.
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}"
folder=${1:-$(mktemp -d)}
command -v nvcc >/dev/null || { echo "error: no nvcc on PATH: install a CUDA toolkit" >&2; exit 3; }
cuda_root=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ _HERE_=//p' | head -1)
cuda_root=$(dirname "$cuda_root")
mkdir -p "$folder/stub"
# Every cu* function of cuda.h; each returns CUDA_ERROR_NO_DEVICE (100), except the two that return text.
header=$(find -L "$cuda_root" -name cuda.h | head -1)
{
    echo 'int cuGetErrorString(int e, const char **s){*s = "no CUDA-capable device is detected"; return 0;}'
    echo 'int cuGetErrorName(int e, const char **s){*s = "CUDA_ERROR_NO_DEVICE"; return 0;}'
    { for name in cuda.h cudaProfiler.h cudaGL.h; do
          grep -ohE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?\b' "$(dirname "$header")/$name" 2>/dev/null || true
      done
    } | sort -u | grep -vE '^cuGetError(String|Name)$' | sed 's/.*/int &(){return 100;}/'
} >"$folder/stub/stub.c"
gcc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$folder/stub/libcuda.so.1" "$folder/stub/stub.c"
ln -sf libcuda.so.1 "$folder/stub/libcuda.so"
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy opencv-python-headless pytest setuptools wheel
mkdir -p "$folder/home"
printf 'CUDA_ENABLE_CURAND = False\nCUDA_ROOT = "%s"\n' "$cuda_root" >"$folder/home/.aksetup-defaults.py"
HOME="$folder/home" LIBRARY_PATH="$folder/stub" PATH="$cuda_root/bin:$PATH" \
    "$folder/venv/bin/pip" install -q pycuda
LD_LIBRARY_PATH="$folder/stub" "$folder/venv/bin/python" -m tests.pycuda_check
echo "PyCUDA built and checked; to repeat the check: LD_LIBRARY_PATH=$folder/stub $folder/venv/bin/python -m tests.pycuda_check"
