#!/bin/sh
# Make the virtual environment that `make demo` and `make test` use: this project, editable, with the packages
# of constraints.txt. Everything comes from the package index that pip is configured for.
set -eu
: "${PYTHON:=python3}" "${VENV:=.venv}"

if ! "$PYTHON" -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1 || echo missing), this project needs Python 3.10 to 3.13" >&2
    echo "hint: make PYTHON=python3.11 demo" >&2
    exit 3
fi
if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $PYTHON cannot make virtual environments" >&2
    echo "hint: on Debian and Ubuntu, apt install python3-venv" >&2
    exit 3
fi
echo "setting up $VENV with $("$PYTHON" --version) (about a minute; PyTorch is the large part)"
"$PYTHON" -m venv --clear "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[cpu,export,train,report,rtx,video,dev]'
"$VENV/bin/python" -m pip check
# A test compares with pytorchcv's own ESNet. Without its dependencies: the torchvision of the index is built for
# CUDA, and beside a CPU build of torch it breaks every library that looks whether torchvision is there.
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps pytorchcv
