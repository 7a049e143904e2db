#!/bin/sh
# Run the GPU tests on a Linux machine with an NVIDIA driver, in at most 10 minutes:
#   scripts/gpu_check.sh --out DIR [--minutes N] [--data DIR] [--weights NAME] [--size HxW] [--quick] [PYTEST OPTION ...]
# The tests use each installed library (TensorRT, TensorRT-RTX, ONNX Runtime CUDA, PyCUDA, cuda-bindings) and skip those of
# missing ones; a file of which no test ran fails the check, unless -k leaves it out. They measure
#   copies from pinned and pageable memory, and the host time of each CUDA library; the ring, with and without CUDA graphs;
#   ONNX Runtime CUDA in fp32 and fp16: labels beside torch and beside the artefact on the CPU; batches of 1, 4 and 8;
#   CUDA graphs, prefer_nhwc and each CUDA library, one at a time; torch eager, compiled and channels-last beside it;
#   TensorRT: kernels, labels, batches, throughput.
# Every test writes its result to DIR; run the same command again to continue after an interruption, or after the time is
# over: tests that passed with the same source are skipped. At the end DIR/gpu_check.json and the table DIR/gpu_check.md
# hold all results.
#   --minutes  end after this time; default: 10
#   --data     image folder or video; default: generated scenes
#   --weights  checkpoint, or the name of shipped weights; default: camvid
#   --size     of frames and models; default: 512x1024
#   --quick    a tenth of the work or less
#   -k ring    (pytest) run only the tests of the slot ring; -k 'not test_gpu_tensorrt' leaves that file out
# Needs this checkout and the packages; $PYTHON selects the interpreter. Exit code: that of pytest, 0 if no test failed;
# 124 if the time was over.
set -eu
usage="usage: scripts/gpu_check.sh --out DIR [--minutes N] [--data DIR] [--weights NAME] [--size HxW] [--quick] [PYTEST OPTION ...]"
: "${PYTHON:=python3}"
out='' minutes=10
while [ $# -gt 0 ]; do
    case $1 in
        --out | --minutes | --data | --weights | --size)
            [ $# -gt 1 ] || { echo "error: $1 needs a value; $usage" >&2; exit 2; } ;;
    esac
    case $1 in
        --out) mkdir -p "$2"; out=$(realpath "$2"); shift ;;
        --minutes) minutes=$2; shift ;;
        --data) ESNET_GPU_DATA=$(realpath "$2"); export ESNET_GPU_DATA; shift ;;
        --weights) export ESNET_GPU_WEIGHTS="$2"; shift ;;
        --size) export ESNET_GPU_SIZE="$2"; shift ;;
        --quick) export ESNET_GPU_QUICK=1 ;;
        --help) echo "$usage"; exit 0 ;;
        *) break ;;
    esac
    shift
done
[ -n "$out" ] || { echo "error: --out DIR is missing; $usage" >&2; exit 2; }
case $minutes in
    '' | 0* | *[!0-9]*) echo "error: --minutes $minutes is not a whole number from 1; $usage" >&2; exit 2 ;;
esac
"$PYTHON" -c "import pytest" 2>/dev/null || {
    echo "error: $PYTHON has no pytest; install it: $PYTHON -m pip install 'pytest>=8'" >&2
    exit 3
}
cd "$(dirname "$0")/.."
export ESNET_REQUIRE_GPU=1 ESNET_GPU_RESULTS="$out" ESNET_GPU_MINUTES="$minutes" \
    PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# On SIGINT pytest writes the table of what has ended. --foreground keeps Ctrl-C working.
# --confcutdir: tests/conftest.py needs torch and onnx, the device and ring tests do not.
exec timeout --foreground --signal=INT --kill-after=30 "${minutes}m" \
    "$PYTHON" -m pytest tests/gpu -m gpu -p no:cacheprovider --confcutdir=tests/gpu -v "$@"
