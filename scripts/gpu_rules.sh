#!/bin/sh
# Run tests/gpu_rules with every supported CUDA library, over a stub of the NVIDIA driver; no GPU is needed:
#   scripts/gpu_rules.sh [PYTEST ARGUMENTS]
# Needs Linux on x86-64, cc, c++, and Python 3.11 or later with this project's dev extra ($PYTHON, default
# .venv/bin/python).
# The environments lie in $GPU_RULES_CACHE (1.1GB). The first run makes them: about 8 minutes on two busy cores, half of
# it for PyCUDA.
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:=.venv/bin/python}"
: "${GPU_RULES_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/esnet-deploy/gpu-rules}"

environments=
# environment KIND VERSION [PIP ARGUMENTS]: make the environment KIND-VERSION unless it is complete.
environment() {
    kind=$1 version=$2 folder=$GPU_RULES_CACHE/$1-$2
    shift 2
    environments=${environments:+$environments:}$folder
    [ -e "$folder/complete" ] && return
    echo "setting up $kind $version"
    "$PYTHON" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$GPU_RULES_CACHE/constraints.txt" numpy onnx pytest rich typer
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$GPU_RULES_CACHE/constraints.txt" "$@" "$kind==$version"
    touch "$folder/complete"
}

mkdir -p "$GPU_RULES_CACHE/home"
stub=$("$PYTHON" -m tests.cuda_stub.build "$GPU_RULES_CACHE")
include=$("$PYTHON" -c 'from tests.cuda_stub.build import headers; print(headers())')
grep -v -e '^cuda-bindings' -e '^onnxruntime' constraints.txt >"$GPU_RULES_CACHE/constraints.txt"

environment cuda-bindings 12.9.10
environment cuda-bindings 13.5.0
environment onnxruntime-gpu 1.31.1 cuda-bindings==13.5.0
# PyCUDA has no wheels: it is compiled with the headers of the CUDA wheels and linked against the stub. Its build reads
# its settings from the home directory.
printf 'CUDA_ENABLE_CURAND = False\nCUDA_INC_DIR = ["%s"]\nCUDADRV_LIB_DIR = ["%s"]\n' "$include" "$stub" \
    >"$GPU_RULES_CACHE/home/.aksetup-defaults.py"
(HOME=$GPU_RULES_CACHE/home && export HOME && environment pycuda 2026.1 --no-cache-dir --no-binary pycuda)
environments=$environments:$GPU_RULES_CACHE/pycuda-2026.1

GPU_RULES_ENVIRONMENTS=$environments exec "$PYTHON" -m pytest -q tests/gpu_rules "$@"
