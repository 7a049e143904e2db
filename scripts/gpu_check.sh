#!/bin/sh
# Prove the GPU side on a Linux machine with an NVIDIA driver:
#   scripts/gpu_check.sh --out DIR [--data DIR] [--quick]
# Uses what is installed (TensorRT, TensorRT-RTX, ONNX Runtime CUDA, PyCUDA, cuda-bindings), says what is not, and writes
# gpu_check.json and gpu_check.md. Each stage is kept in DIR: started again, it goes on where it stopped.
# Needs only this checkout and the packages; $PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}"
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 exec "$PYTHON" -m benchmarks.gpu_check "$@"
