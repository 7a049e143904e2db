"""``esnet-bench compare``: the same weights by every route this machine offers, in one interleaved run."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console

from benchmarks.baselines.pipelines import OUR_NAME, pipeline_makers
from benchmarks.baselines.worker import PipelineRequest, PipelineWorker
from benchmarks.environment import describe_environment, describe_gpu_state
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet
from benchmarks.report.tables import TextTable, markdown_from_table, rich_table, wide_console
from benchmarks.roofline.layers import network_from_onnx
from benchmarks.roofline.peak import measure_machine
from benchmarks.timing.statistics import Summary, median_interval, summarize
from esnet.checkpoint import load_checkpoint
from esnet.data.labelled import LabelledSplit, nearest_size
from esnet.metrics import ConfusionMatrix, label_agreement
from export.plan import ExportPlan
from export.to_onnx import export_onnx
from runtime.backend import installed_backends
from runtime.files import atomic_path
from runtime.media.frames import resize_frame, resize_map

SCHEMA = 1
MODE = "compare"
MIN_ROUNDS = 20
_BLOCK_SECONDS, _BLOCK_CALLS = 0.2, 2
_IMAGES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineResult:
    """One route's speed, and how right it is."""

    name: str
    """The route."""
    end_to_end: Summary
    """Frame in, class map out, milliseconds, all rounds together."""
    speed: float
    """Median over the rounds of the first route's median over this one's."""
    speed_low: float
    """Lower end of the bootstrap 95 % interval of ``speed``, over rounds."""
    speed_high: float
    """Upper end."""
    agreement: float
    """Share of pixels labelled as the first route labels them, 0 to 1."""
    miou: float | None
    """On labelled data at its own size, 0 to 1; ``None`` where it was not asked for."""
    sha256: str | None
    """Hash of the file that ran; ``None`` for torch, which runs the weights."""

    @property
    def is_ours(self) -> bool:
        """Whether it is this toolkit's."""
        return self.name.startswith(OUR_NAME)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareReport:
    """All routes of one run."""

    results: tuple[PipelineResult, ...]
    """The first is the reference of speed and labels."""
    left_out: tuple[str, ...]
    """What could not be had here, and why."""
    rounds: int
    """Interleaved rounds."""
    weights: str
    """File name of the weights."""
    weights_sha256: str
    """Their hash."""
    size_hw: tuple[int, int]
    """Frame size that was timed."""
    miou_data: str | None
    """What mIoU was measured on, and at which size."""
    frames: str
    """What was timed on."""
    gflop: float
    """Operations of a frame, a multiplication and its addition being two, 1e9."""
    compute_floor_ms: dict[str, float]
    """Precision to what the operations alone take at this CPU's measured peak."""
    floor_source: str
    """How the peak was measured."""
    environment: dict[str, str]
    """Where and with what."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"schema": SCHEMA, "mode": MODE, **dataclasses.asdict(self)}


def compare_weights(
    weights: str,
    frames: FrameSet,
    *,
    rounds: int = MIN_ROUNDS,
    calibration: Path | None = None,
    labelled: LabelledSplit | None = None,
    skip: Collection[str] = (),
    on_part: Callable[[str], None] = lambda text: None,
) -> CompareReport:
    """Export, open and time every route, and measure how right each is.

    Args:
        weights: Checkpoint, or the name of shipped weights.
        frames: What is timed on, all of one size, multiples of 8.
        rounds: Interleaved rounds, at least 20.
        calibration: Frames for INT8 ranges; ``None`` takes those that are shipped with the weights.
        labelled: Data to measure mIoU on, at its own size; ``None`` leaves it out.
        skip: Names of routes not to make.
        on_part: Told what is done.

    Raises:
        BenchmarkError: Fewer than 20 rounds, frames of several sizes, or no route at all.
    """
    size_hw = _size_of(frames)
    if rounds < MIN_ROUNDS:
        raise BenchmarkError(
            f"{rounds} rounds are too few for an interval", hint=f"--rounds {MIN_ROUNDS} or more"
        )
    environment = describe_environment()
    checkpoint = load_checkpoint(weights)
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="esnet-compare-") as name, ExitStack() as stack:
        folder = Path(name)
        workers = []
        for route in pipeline_makers(weights, size_hw, folder, stack):
            if route in skip:
                continue
            on_part(f"making {route}")
            request = PipelineRequest(
                name=route,
                weights=weights,
                folder=folder,
                calibration=calibration,
                frames=frames.frames,
            )
            try:
                workers.append(stack.enter_context(PipelineWorker(request)))
            except BenchmarkError as error:
                left_out.append(str(error))
        if not workers:
            raise BenchmarkError(f"no route runs here: {'; '.join(left_out)}")
        on_part("labels")
        labels = [worker.segment(frames.frames) for worker in workers]
        blocks: list[list[list[float]]] = [[] for _ in workers]
        for done in range(rounds):
            on_part(f"round {done + 1} of {rounds}")
            for worker, own in zip(workers, blocks, strict=True):
                own.append(worker.time_block(_BLOCK_SECONDS, _BLOCK_CALLS))
        on_part("peaks of this machine")
        network = network_from_onnx(onnx.load(_plain_graph(weights, size_hw, folder)))
        device = measure_machine(backends=installed_backends())
        mious: dict[str, float] = {}
        miou_data = None
        if labelled is not None:
            data_hw = nearest_size(labelled[0].image.shape)
            miou_data = (
                f"{labelled.dataset} {labelled.split}, {len(labelled)} images, "
                f"at {data_hw[0]}x{data_hw[1]}"
            )
            for worker in workers:
                on_part(f"mIoU of {worker.name}")
                try:
                    mious[worker.name] = _miou(worker, labelled, data_hw)
                except BenchmarkError as error:
                    left_out.append(f"mIoU of {error}")
        results = results_of(
            [worker.name for worker in workers],
            blocks,
            labels,
            mious=mious,
            sha256={worker.name: worker.sha256 for worker in workers},
        )
    return CompareReport(
        results=tuple(results),
        left_out=tuple(left_out),
        rounds=rounds,
        weights=checkpoint.path.name,
        weights_sha256=checkpoint.sha256,
        size_hw=size_hw,
        miou_data=miou_data,
        frames=frames.description,
        gflop=network.flops / 1e9,
        compute_floor_ms={
            precision: network.floor(device, precision).compute_ms for precision in device.peak_tops
        },
        floor_source=device.source,
        environment={**environment, "gpu after": describe_gpu_state()},
    )


def results_of(
    names: Sequence[str],
    blocks: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[np.ndarray]],
    *,
    mious: Mapping[str, float],
    sha256: Mapping[str, str | None],
) -> list[PipelineResult]:
    """Compare routes with the first.

    Speed is compared within a round, so that a machine that slows down slows all alike.

    Args:
        names: Of the routes.
        blocks: For each route, for each round, milliseconds of its calls.
        labels: For each route, class maps of the same frames.
        mious: Name to mIoU, where it was measured.
        sha256: Name to the hash of what ran.
    """
    medians = np.array([[np.median(block) for block in own] for own in blocks])
    results = []
    for name, own, per_round, found in zip(names, blocks, medians, labels, strict=True):
        ratios = medians[0] / per_round
        low, high = median_interval(ratios)
        results.append(
            PipelineResult(
                name=name,
                end_to_end=summarize([time for block in own for time in block]),
                speed=float(np.median(ratios)),
                speed_low=low,
                speed_high=high,
                agreement=label_agreement(found, labels[0]),
                miou=mious.get(name),
                sha256=sha256.get(name),
            )
        )
    return results


def comparison_table(report: CompareReport) -> TextTable:
    """Lay out one row for each route."""
    has_miou = any(result.miou is not None for result in report.results)
    columns = ("route", "n", "p50 ms", "95 % CI", "speed", "95 % CI", "FPS", "labels")
    rows = []
    for result in report.results:
        summary = result.end_to_end
        rows.append(
            [
                result.name,
                str(summary.n),
                f"{summary.p50:.1f}",
                f"{summary.p50_low:.1f}-{summary.p50_high:.1f}",
                f"{result.speed:.2f}x",
                f"{result.speed_low:.2f}-{result.speed_high:.2f}",
                f"{summary.fps:.1f}",
                f"{100 * result.agreement:.2f} %",
                *([_percent(result.miou)] if has_miou else []),
            ]
        )
    height, width = report.size_hw
    title = f"{report.weights} at {height}x{width}, uint8 frame in, uint8 class map out"
    return TextTable(title, (*columns, *(("mIoU",) if has_miou else ())), rows)


def compare_notes(report: CompareReport) -> list[str]:
    """Explain the table: what the ratios are of, what is missing."""
    first = report.results[0].name
    lines = [
        f"speed and labels: against {first}; {report.rounds} interleaved rounds, ratios within a round; "
        "each route in a process of its own.",
        f"weights {report.weights_sha256[:12]}",
    ]
    floors = ", ".join(f"{name} {ms:.0f} ms" for name, ms in report.compute_floor_ms.items())
    lines.append(
        f"compute floor of {report.gflop:.1f} GFLOP on this CPU: {floors} ({report.floor_source})."
    )
    for result in report.results:
        precision = result.name.rpartition(" ")[2]
        if result.is_ours and precision in report.compute_floor_ms:
            times = result.end_to_end.p50 / report.compute_floor_ms[precision]
            lines.append(f"{result.name}: {times:.2f} x its compute floor.")
    if report.miou_data:
        lines.append(f"mIoU: {report.miou_data}, from the same weights and ranges.")
    return lines + [f"left out: {line}" for line in report.left_out]


def print_comparison(report: CompareReport, console: Console | None = None) -> None:
    """Print environment, table and notes."""
    console = wide_console(console)
    for key, value in {**report.environment, "frames": report.frames}.items():
        console.print(f"{key:>10}  {value}", markup=False, soft_wrap=True)
    console.print()
    console.print(rich_table(comparison_table(report)))
    for note in compare_notes(report):
        console.print(note, markup=False, soft_wrap=True)


def write_comparison_json(report: CompareReport, path: Path) -> None:
    """Write the whole report, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")


def write_comparison_markdown(report: CompareReport, path: Path) -> None:
    """Write table, notes and environment."""
    grid = comparison_table(report)
    facts = {**report.environment, "frames": report.frames}
    parts = [
        f"**{grid.title}**",
        markdown_from_table(grid),
        "\n".join(f"- {note}" for note in compare_notes(report)),
        "\n".join(f"- {key}: {value}" for key, value in facts.items()),
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")


def _size_of(frames: FrameSet) -> tuple[int, int]:
    sizes = {frame.shape[:2] for frame in frames.frames}
    height, width = min(sizes)
    if len(sizes) > 1 or height % 8 or width % 8:
        raise BenchmarkError(
            f"compare needs frames of one size, multiples of 8, got {sorted(sizes)}",
            hint="--size 512x1024",
        )
    return height, width


def _plain_graph(weights: str, size_hw: tuple[int, int], folder: Path) -> Path:
    """Export the network without padding its head, for the work it really is."""
    path = folder / "work.onnx"
    export_onnx(weights, path, ExportPlan(size_hw=size_hw, upsample="transpose"), verify=False)
    return path


def _miou(worker: PipelineWorker, labelled: LabelledSplit, size_hw: tuple[int, int]) -> float:
    matrix = ConfusionMatrix(labelled.label_set.num_classes, labelled.label_set.ignore_index)
    for start in range(0, len(labelled), _IMAGES_AT_ONCE):
        stop = min(start + _IMAGES_AT_ONCE, len(labelled))
        samples = [labelled[index] for index in range(start, stop)]
        found = worker.segment([resize_frame(sample.image, size_hw) for sample in samples])
        for labels, sample in zip(found, samples, strict=True):
            height, width = sample.labels.shape
            matrix.update(sample.labels, resize_map(labels, (height, width)))
    return matrix.miou


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
