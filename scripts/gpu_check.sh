#!/bin/sh
# Run the GPU tests on a Linux machine with an NVIDIA driver:
#   scripts/gpu_check.sh --out DIR [--data DIR] [--weights NAME] [--quick] [PYTEST OPTION ...]
# The tests use each installed library (TensorRT, TensorRT-RTX, ONNX Runtime CUDA, PyCUDA, cuda-bindings) and skip those of
# missing ones; a file of which no test ran fails the check, unless -k leaves it out. Every test writes its result to DIR;
# run the same command again to continue after an interruption: tests that passed with the same source are skipped. At the
# end gpu_check.json and gpu_check.md in DIR hold all results.
#   --data     image folder or video; default: generated scenes
#   --weights  checkpoint, or the name of shipped weights; default: camvid
#   --quick    a tenth of the work or less
#   -k ring    (pytest) run only the tests of the slot ring; -k 'not test_gpu_tensorrt' leaves that file out
# Needs this checkout and the packages; $PYTHON selects the interpreter. Exit code: that of pytest, 0 if no test failed.
set -eu
usage="usage: scripts/gpu_check.sh --out DIR [--data DIR] [--weights NAME] [--quick] [PYTEST OPTION ...]"
: "${PYTHON:=python3}"
out=
while [ $# -gt 0 ]; do
    case $1 in
        --out | --data | --weights) [ $# -gt 1 ] || { echo "error: $1 needs a value; $usage" >&2; exit 2; } ;;
    esac
    case $1 in
        --out) mkdir -p "$2"; out=$(realpath "$2"); shift ;;
        --data) ESNET_GPU_DATA=$(realpath "$2"); export ESNET_GPU_DATA; shift ;;
        --weights) export ESNET_GPU_WEIGHTS="$2"; shift ;;
        --quick) export ESNET_GPU_QUICK=1 ;;
        --help) echo "$usage"; exit 0 ;;
        *) break ;;
    esac
    shift
done
[ -n "$out" ] || { echo "error: --out DIR is missing; $usage" >&2; exit 2; }
"$PYTHON" -c "import pytest" 2>/dev/null || {
    echo "error: $PYTHON has no pytest; install it: $PYTHON -m pip install 'pytest>=8'" >&2
    exit 3
}
cd "$(dirname "$0")/.."
export ESNET_REQUIRE_GPU=1 ESNET_GPU_RESULTS="$out" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# --confcutdir: tests/conftest.py needs torch and onnx, the device and ring tests do not.
exec "$PYTHON" -m pytest tests/gpu -m gpu -p no:cacheprovider --confcutdir=tests/gpu -v "$@"
