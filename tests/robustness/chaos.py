"""Kill every command that writes, or fill its disk, at random moments. ``make chaos``.

After each attack no file may be whole by its name and damaged by its content. The same command run again must
work and leave no temporary file. Commands run in forked children of a process with all libraries. A full disk
is a limit on the size of a file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENCV_LOG_LEVEL="SILENT", OPENCV_FFMPEG_LOGLEVEL="-8")

import cv2
import lightning  # noqa: F401 - loaded once, here
import numpy as np
import onnxruntime  # noqa: F401
import torch

import benchmarks.cli
import benchmarks.timing.suite
import esnet.data.cli
import esnet.training.cli
import esnet.training.run
import export.cli
import export.quantization.quantize
import export.to_onnx
import runtime.cli
import runtime.segment
from esnet.checkpoint import load_checkpoint
from esnet.data.scenes import street_scene
from runtime.artefact.card import ModelCard
from runtime.artefact.onnx_file import check_graph
from runtime.media.sources import open_source, read_image

_NUM_FRAMES = 40
_SECONDS = 180
_LOGS: dict[int, subprocess.Popen[bytes]] = {}
_ATTACKS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, "full disk")

Command = tuple[Callable[[], Any], list[str]]


def commands(base: Path, out: Path) -> dict[str, Command]:
    """Make every command that writes, with its words."""
    model = str(base / "model.onnx")
    segment = ["esnet-segment", str(base / "in.mp4"), "-m", model, "--backend", "onnxruntime"]
    train = [
        "--batch-size",
        "3",
        "--crop",
        "16x16",
        "--accelerator",
        "cpu",
        "--precision",
        "fp32",
        "--workers",
        "0",
    ]
    train += ["--precision", "fp32", "--epochs", "2", "--validate-every", "1"]
    cache, sheet = ["--write-trt-cache", f"{out}/a.cache"], ["--contact-sheet", f"{out}/sheet.png"]
    quick = ["--size", "64x128", "--max-seconds", "0.2", "--backend", "onnxruntime"]
    reports = [f"--{kind}={out}/report.{kind}" for kind in ("json", "csv", "html")]
    return {
        "to-onnx": (
            export.cli.main,
            ["esnet-export", "to-onnx", "camvid", "-o", f"{out}/m.onnx", "--size", "64x128"],
        ),
        "quantize": (
            export.cli.main,
            [*["esnet-export", "quantize"], model, "-o", f"{out}/q.onnx", *cache],
        ),
        "segment to mp4": (runtime.cli.segment_main, [*segment, "-o", f"{out}/out.mp4"]),
        "segment to folder": (runtime.cli.segment_main, [*segment, "-o", f"{out}/frames"]),
        "bench": (benchmarks.cli.main, ["esnet-bench", model, *quick, *reports]),
        "train": (
            esnet.training.cli.main,
            ["esnet-train", "--data", str(base / "camvid"), "-o", f"{out}/run", *train],
        ),
        "data check": (
            esnet.data.cli.main,
            ["esnet-data", "check", str(base / "camvid"), "--dataset", "camvid", *sheet],
        ),
    }


def make_base(base: Path) -> None:
    """Make a model, a video and a dataset."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for split, count in (("train", 6), ("val", 3)):
        for seed in range(count):
            scene = street_scene((44, 52), seed=seed)
            for folder, image in ((split, scene.image), (f"{split}annot", scene.labels)):
                (base / "camvid" / folder).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(base / "camvid" / folder / f"{seed}.png"), image)
    writer = cv2.VideoWriter(str(base / "in.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (128, 64))
    for index in range(_NUM_FRAMES):
        writer.write(np.roll(street_scene((64, 128), seed=0).image, 2 * index, 1))
    writer.release()
    words = [
        "esnet-export",
        "to-onnx",
        "camvid",
        "-o",
        str(base / "model.onnx"),
        "--size",
        "64x128",
    ]
    started = _start((export.cli.main, [*words, "--optimize-for", "openvino"]), base / "log.txt")
    assert _wait(started) == 0, (base / "log.txt").read_text()


def problems_in(out: Path) -> list[str]:
    """List the files that look whole but are not."""
    problems = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        try:
            if not (path.name.startswith(".") or path.name.endswith(".partial.mp4")):
                _check(path)
        except Exception as error:
            problems.append(f"{path.name}: {type(error).__name__}: {error}"[:200])
    return problems


def temporaries_in(out: Path) -> list[str]:
    """List the temporary files."""
    return [
        path.name
        for path in out.rglob("*")
        if path.is_file() and (path.name.startswith(".") or path.name.endswith(".partial.mp4"))
    ]


def _check(path: Path) -> None:
    if path.suffix == ".onnx":
        ModelCard.from_file(path)
        check_graph(path)
    elif path.suffix in (".ckpt", ".safetensors"):
        load_checkpoint(path)
    elif path.suffix == ".png":
        read_image(path)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix in (".csv", ".cache", ".html"):
        assert path.read_text().endswith("\n") or path.suffix == ".html", "cut short"
    elif path.suffix == ".mp4":
        source = open_source(path)
        count = sum(1 for _ in source)
        assert count, "no frames"
        assert not source.skipped, source.skipped


def _start(command: Command, log: Path, *, max_bytes: int | None = None) -> int:
    """Run a command in a forked child; get its process id."""
    main, words = command
    with log.open("wb") as file:  # not by the child, whose limit would hold for the log, too
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
    assert writer.stdin is not None
    pid = os.fork()
    if pid:
        writer.stdin.close()
        _LOGS[pid] = writer
        return pid
    os.setsid()
    os.dup2(writer.stdin.fileno(), 1)
    os.dup2(writer.stdin.fileno(), 2)
    writer.stdin.close()
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if max_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 99
    threading._shutdown()  # type: ignore[attr-defined] # as at the end of Python
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(pid: int) -> int:
    """Get the exit code of a child; negative for a signal, -99 if it hangs."""
    ends = time.monotonic() + _SECONDS
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _LOGS.pop(pid).wait()
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _LOGS.pop(pid).wait()
    return -99


def _attack(
    random: Random, command: Command, attack: signal.Signals | str, seconds: float, log: Path
) -> int:
    """Run a command that is killed, or whose disk is full; get its exit code."""
    if isinstance(attack, str):
        return _wait(_start(command, log, max_bytes=random.choice([0, 200, 4096, 20_000, 500_000])))
    pid = _start(command, log)
    # Half of them near the end, where files are written.
    time.sleep(seconds * random.choice([random.random(), random.uniform(0.7, 1.05)]))
    os.kill(pid, attack)
    return _wait(pid)


def _expected(attack: signal.Signals | str) -> set[int]:
    """List the exit codes; 1 if a video or a folder has the frames up to the attack."""
    if isinstance(attack, str):
        return {0, 1, 2}
    return {0, -attack} if attack == signal.SIGKILL else {0, 1, 128 + attack}


def chaos(count: int, seed: int, only: str) -> dict[str, Any]:
    """Attack the commands in turns, and get the results as plain data."""
    started, random = time.monotonic(), Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    # Reports ask git for the commit; git that dies on a full disk would leave this checkout locked.
    os.environ["GIT_DIR"] = str(folder / "no repository")
    out, log = folder / "out", folder / "log.txt"
    make_base(folder)
    table = {name: c for name, c in commands(folder, out).items() if only in name}
    seconds: dict[str, float] = {}
    counts: Counter[str] = Counter()
    failures, left_by_attack = [], 0
    for index in range(count):
        name = list(table)[index % len(table)]
        command = table[name]
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if name not in seconds:
            began = time.monotonic()
            code = _wait(_start(command, log))
            assert code == 0, (name, code, log.read_text()[-2000:])
            seconds[name] = time.monotonic() - began
        if random.random() < 0.5:  # else the attack is on a run over older results
            shutil.rmtree(out)
            out.mkdir()
        attack = _ATTACKS[index // len(table) % len(_ATTACKS)]
        code = _attack(random, command, attack, seconds[name], log)
        what = attack if isinstance(attack, str) else attack.name
        counts[f"{what}: {code}"] += 1
        problems, text = problems_in(out), log.read_text()
        left = temporaries_in(out)
        left_by_attack += len(left)
        if code not in _expected(attack):
            problems.append(f"exit code {code}: {text[-600:]}")
        if "Traceback" in text:
            problems.append(f"traceback: {text[-1000:]}")
        if attack in (signal.SIGTERM, signal.SIGINT) and any(n.startswith(".") for n in left):
            problems.append(f"temporary files after {what}: {left}")
        again = _wait(_start(command, log))
        if again != 0:
            problems.append(f"next run: exit code {again}: {log.read_text()[-600:]}")
        problems += [f"next run: {problem}" for problem in problems_in(out)]
        if left := temporaries_in(out):
            problems.append(f"temporary files after the next run: {left}")
        if problems:
            failures.append({"command": name, "attack": what, "code": code, "problems": problems})
            print(name, what, code, *problems, sep="\n  ", flush=True)
    shutil.rmtree(folder)
    return {
        "attacks": count,
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "commands": {name: round(value, 2) for name, value in seconds.items()},
        "outcomes": dict(sorted(counts.items())),
        "temporary_files_left_until_the_next_run": left_by_attack,
        "failures": failures,
    }


def main() -> None:
    """Parse the options, run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Part of the name of a command.")
    parser.add_argument("--json", type=Path, help="Write the results here.")
    options = parser.parse_args()
    results = chaos(options.kills, options.seed, options.only)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print({key: value for key, value in results.items() if key != "failures"})
    if results["failures"]:
        sys.exit(f"{len(results['failures'])} failures")


if __name__ == "__main__":
    main()
