"""Export, quantize, segment and benchmark on this machine; prints each command: ``make demo``."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from esnet.data.scenes import street_scene
from runtime.machine.onednn import has_bf16
from runtime.media.sources import open_source
from runtime.output.images import write_image

OUT = Path("out/demo")
_CAMVID = Path("../shared/camvid/val")
_SIZE = (512, 1024)
_NUM_SCENES = 16
_BENCH_SECONDS = 8


def main() -> None:
    """Run the steps from weights to a benchmark report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--frames", type=Path, help="image, folder or video; default: CamVid, or generated scenes"
    )
    frames = _choose_frames(parser.parse_args().frames)
    OUT.mkdir(parents=True, exist_ok=True)
    model, int8 = OUT / "camvid_512x1024_fp32.onnx", OUT / "camvid_512x1024_int8.onnx"
    source = open_source(frames)
    is_video = source.fps is not None
    overlays = OUT / ("overlay.mp4" if is_video else "overlays")
    data = f"--data {_CAMVID.parent}" if _CAMVID.is_dir() else ""
    bf16 = "--precision bf16" if has_bf16() else ""
    source_words = shlex.quote(str(frames))
    steps = {
        "Check the installed libraries and backends": "esnet-doctor",
        "Export weights to ONNX and compare with torch": (
            f"esnet-export to-onnx camvid -o {model} --optimize-for openvino --frames {source_words}"
        ),
        "Quantize to INT8 and compare with fp32 on every backend": (
            f"esnet-export quantize {model} -o {int8}"
        ),
        "Segment the frames": f"esnet-segment {source_words} --model {model} -o {overlays}",
        f"Benchmark, {_BENCH_SECONDS} s per row (default: 20 s), with mIoU if CamVid is present": (
            f"esnet-bench {model} {int8} --precision fp32 {bf16} --frames {source_words} {data} "
            f"--max-seconds {_BENCH_SECONDS} --json {OUT}/bench.json --html {OUT}/bench.html"
        ),
    }
    for number, (title, command) in enumerate(steps.items(), start=1):
        _run_step(f"[{number}/{len(steps)}] {title}", shlex.split(command))
    overlay = overlays if is_video else overlays / f"{next(iter(source)).name}.png"
    print(f"\noverlay: {overlay.resolve()}\nreport:  {(OUT / 'bench.html').resolve()}")


def _choose_frames(given: Path | None) -> Path:
    """Choose the given frames, else CamVid beside the checkout, else generated scenes; print the choice."""
    if given is not None:
        print(f"frames: {given}, as given")
        return given
    if _CAMVID.is_dir():
        print(f"frames: {_CAMVID}, real CamVid frames (FRAMES=path make demo takes others)")
        return _CAMVID
    folder = OUT / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(_NUM_SCENES):
        write_image(folder / f"scene_{seed:02d}.png", street_scene(_SIZE, seed=seed).image)
    print(f"frames: {folder}, generated street scenes (FRAMES=path make demo takes real ones)")
    return folder


def _run_step(title: str, command: list[str]) -> None:
    """Print a command, run it from the environment of this Python, and exit if it fails."""
    print(f"\n{title}\n$ {shlex.join(command)}", flush=True)
    program = Path(sys.executable).parent / command[0]
    status = subprocess.run([str(program), *command[1:]], check=False).returncode
    if status != 0:
        sys.exit(status)


if __name__ == "__main__":
    main()
