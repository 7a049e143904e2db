"""Training throughput on this machine: the plain loop that everyone writes, and ``esnet-train``, in turns.

    python -m scripts.training --data DIR [--rounds 3] [--json F]

Each turn is a process of its own, for allocator settings are a process's; a turn counts whole steps after
a warm-up. Both read, augment, score and learn the same pictures with the same network, batch and crop, in
bf16 where the CPU has it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.environment import describe_environment
from runtime.files import atomic_path

_WARMUP_STEPS, _STEPS = 4, 16


def main() -> None:
    """Time both in turns and print images a second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--turn", choices=["plain", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print({"plain": _plain_turn, "ours": _our_turn}[options.turn](options.data))
        return
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(options.rounds):
        for name, values in rates.items():
            command = [
                sys.executable,
                "-m",
                "scripts.training",
                "--data",
                str(options.data),
                "--turn",
                name,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            values.append(float(done.stdout.split()[-1]))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    ratio = medians["ours"] / medians["plain"]
    for name, values in rates.items():
        print(
            f"{name:>6}  {medians[name]:5.2f} images/s  ({', '.join(f'{v:.2f}' for v in values)})"
        )
    print(f" ratio  {ratio:.2f}x")
    if options.json:
        report = {"images_per_second": rates, "ratio": ratio, "environment": describe_environment()}
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")


def _plain_turn(data: Path) -> float:
    """Images a second of the loop in most tutorials: decode, augment and step one after the other."""
    import torch
    from torch.nn import functional

    from esnet.data.augment import augment
    from esnet.data.datasets import open_split
    from esnet.model import ESNet, NetworkConfig
    from esnet.training.recipe import camvid
    from runtime.machine.machine import cpu_flags

    recipe, split = camvid(), open_split("camvid", data, "train")
    network = ESNet(NetworkConfig(num_classes=11)).train()
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate)
    random = np.random.default_rng(0)
    is_bf16 = bool({"avx512_bf16", "amx_bf16"} & cpu_flags())

    def step() -> None:
        picked = random.integers(0, len(split), recipe.batch_size)
        views = [augment(split[int(i)], recipe.augmentation, 11, random) for i in picked]
        images = torch.from_numpy(
            np.stack([view.image for view in views]).transpose(0, 3, 1, 2).copy()
        )
        labels = torch.from_numpy(np.stack([view.labels for view in views])).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            logits = network(images.float() / 255)
            loss = functional.cross_entropy(logits.float(), labels, ignore_index=11)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(_WARMUP_STEPS):
        step()
    started = time.perf_counter()
    for _ in range(_STEPS):
        step()
    return _STEPS * recipe.batch_size / (time.perf_counter() - started)


def _our_turn(data: Path) -> float:
    """Images a second of ``esnet-train``'s own loop, Lovász loss, moving average and log included."""
    from lightning.pytorch.callbacks import Callback

    from esnet.training.recipe import camvid
    from esnet.training.run import RunSettings, train

    stamps: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            stamps.append(time.perf_counter())
            if len(stamps) == _WARMUP_STEPS + _STEPS:
                raise _EnoughSteps

    recipe = replace(camvid(), epochs=2)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughSteps):
        run_dir = Path(folder, "run")
        settings = RunSettings(
            dataset="camvid", data_dir=data, run_dir=run_dir, recipe=recipe, accelerator="cpu"
        )
        train(settings, callbacks=[Clock()])
    seconds = stamps[-1] - stamps[_WARMUP_STEPS - 1]
    return _STEPS * recipe.batch_size / seconds


class _EnoughSteps(Exception):
    """The clock has what it needs."""


if __name__ == "__main__":
    main()
