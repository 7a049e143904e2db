"""Compare the training throughput of a plain PyTorch loop and of ``esnet-train`` on this CPU.

    python scripts/training.py --data DIR [--rounds 3] [--json FILE]

The two alternate, each time in a new process, because allocator settings apply to a process. Both use the
same images, augmentation, network, batch size and crop, in bf16 if the CPU supports it, after a warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch.nn import functional

from benchmarks.environment import describe_environment
from esnet.data.augment import augment
from esnet.data.datasets import open_split
from esnet.model import ESNet, NetworkConfig
from esnet.training.hardware import lightning_precision
from esnet.training.recipe import camvid
from esnet.training.run import train
from esnet.training.settings import RunSettings
from runtime.files import atomic_path

_WARMUP_STEPS, _STEPS = 4, 16


def main() -> None:
    """Measure both alternately and print the images per second."""
    parser = argparse.ArgumentParser(description="Compare the throughput of two training loops.")
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    parser.add_argument("--turn", choices=["plain", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        ends = (_run_plain_loop if options.turn == "plain" else _run_esnet_train)(options.data)
        print(_STEPS * camvid().batch_size / (ends[-1] - ends[_WARMUP_STEPS - 1]))
        return
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(options.rounds):
        for name, values in rates.items():
            command = [sys.executable, __file__, "--data", str(options.data), "--turn", name]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            values.append(float(result.stdout.split()[-1]))
    for name, values in rates.items():
        print(f"{name:>6}  {np.median(values):5.2f} images/s  {np.round(values, 2)}")
    ratio = float(np.median(rates["ours"]) / np.median(rates["plain"]))
    print(f" ratio  {ratio:.2f}x")
    if options.json:
        report = {"images_per_second": rates, "ratio": ratio, "environment": describe_environment()}
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")


def _run_plain_loop(data: Path) -> list[float]:
    """Load, augment and train in sequence, as in most tutorials; returns the end of each step, seconds."""
    recipe, split = camvid(), open_split("camvid", data, "train")
    network = ESNet(NetworkConfig(num_classes=11)).train()
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate)
    random, ends = np.random.default_rng(0), []
    is_bf16 = lightning_precision("auto", "cpu") == "bf16-mixed"
    for _ in range(_WARMUP_STEPS + _STEPS):
        picked = random.integers(0, len(split), recipe.batch_size)
        samples = [augment(split[int(i)], recipe.augmentation, 11, random) for i in picked]
        images = torch.from_numpy(np.stack([s.image for s in samples])).movedim(3, 1).contiguous()
        labels = torch.from_numpy(np.stack([s.labels for s in samples])).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            loss = functional.cross_entropy(network(images / 255).float(), labels, ignore_index=11)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ends.append(time.perf_counter())
    return ends


class _EnoughSteps(Exception):
    """All steps are measured."""


def _run_esnet_train(data: Path) -> list[float]:
    """Run ``esnet-train``, with Lovász loss, moving average and log; returns the end of each step."""
    ends: list[float] = []

    def record(*_: object) -> None:
        ends.append(time.perf_counter())
        if len(ends) == _WARMUP_STEPS + _STEPS:
            raise _EnoughSteps

    with tempfile.TemporaryDirectory() as tmp, contextlib.suppress(_EnoughSteps):
        run_dir = Path(tmp, "run")
        settings = RunSettings(
            dataset="camvid", data_dir=data, run_dir=run_dir, recipe=camvid(), accelerator="cpu"
        )
        train(settings, callbacks=[LambdaCallback(on_train_batch_end=record)])
    return ends


if __name__ == "__main__":
    main()
