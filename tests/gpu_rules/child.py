"""The child process of a GPU test: it imports a CUDA library once, and forks for every test.

    python -m tests.gpu_rules.child LIBRARY MODULE

It reads a request per line, as JSON, from standard input, and answers each with a line of JSON. Every test
runs in a fork that starts before CUDA is used, so it has a driver of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.cuda_stub import stub


def main() -> None:
    """Answer requests until standard input ends."""
    stub.driver()
    importlib.import_module(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(sys.argv[1], json.loads(line))) + "\n")
        answers.flush()


def _answer(library: str, request: dict[str, Any]) -> dict[str, Any]:
    importlib.import_module(request["module"])  # before the fork: it is needed once
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        outcome = _run(library, request)
        with os.fdopen(writing, "w") as pipe:
            json.dump(outcome, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    crashed = {
        "result": None,
        "error": f"the process ended with status {code}",
        "left": {},
        "current": False,
        "log": [],
    }
    return json.loads(text) if text else crashed


def _run(library: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run one test, and look at what it leaves behind."""
    stub.configure(request["environment"])
    result, error = None, None
    try:
        module = importlib.import_module(request["module"])
        result = getattr(module, request["test"]).body(library, **request["arguments"])
    except BaseException:
        error = traceback.format_exc()
    if stub.errors:
        error = f"{error or ''}\nin a host function: {stub.errors[0]!r}"
    log = Path(request["environment"]["CUDA_STUB_LOG"])
    return {
        "result": result,
        "error": error,
        "left": stub.left(),
        "current": stub.current() is not None,
        "log": log.read_text().splitlines() if log.exists() else [],
    }


if __name__ == "__main__":
    main()
