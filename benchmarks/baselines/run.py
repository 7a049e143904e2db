"""``esnet-bench compare``: time the same weights in every pipeline of this machine, in interleaved rounds."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines.pipelines import OUR_NAME, PipelineSetup, pipeline_makers
from benchmarks.baselines.worker import PipelineWorker
from benchmarks.environment import describe_environment, describe_gpu_state
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet, load_frames
from benchmarks.report.tables import (
    TextTable,
    check_folders,
    markdown_from_table,
    print_facts,
    progress_bar,
    rich_table,
    wide_console,
    write_json,
    write_outputs,
    write_text,
)
from benchmarks.roofline.layers import network_from_onnx
from benchmarks.roofline.peak import measure_machine
from benchmarks.timing.statistics import Summary, median_interval, summarize
from esnet.checkpoint import load_checkpoint
from esnet.data.datasets import open_split
from esnet.data.labelled import LabelledSplit, nearest_size
from esnet.labels import label_set_for
from esnet.metrics import confusion_from_pairs, label_agreement
from export.plan import ExportPlan, graph_from_network
from runtime.artefact.card import LOGITS
from runtime.backend import installed_backends
from runtime.media.frames import resize_frame

SCHEMA = 2
MIN_ROUNDS = 20
_BLOCK_SECONDS, _BLOCK_CALLS = 0.2, 2
_IMAGES_AT_ONCE = 16
OnPart = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineResult:
    """Speed and accuracy of a pipeline."""

    name: str
    """Name of the pipeline."""
    end_to_end: Summary
    """Time from frame to labels, ms, all rounds together."""
    speed: float
    """Speed ratio to the first pipeline: median over the rounds of the ratio of medians."""
    speed_low: float
    """Lower end of the bootstrap 95 % interval of ``speed`` over the rounds."""
    speed_high: float
    """Upper end of that interval."""
    agreement: float
    """Share of pixels labelled as by the first pipeline, 0 to 1."""
    miou: float | None
    """mIoU on labelled images at their own size, 0 to 1; ``None`` if not measured."""
    sha256: str | None
    """Hash of the file that ran; ``None`` for torch, which runs the checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareReport:
    """Results of all pipelines of a run."""

    results: tuple[PipelineResult, ...]
    """Results; the first pipeline is the reference for speed and labels."""
    left_out: tuple[str, ...]
    """Pipelines and figures that are missing, with the reason."""
    rounds: int
    """Number of interleaved rounds."""
    weights: str
    """File name of the weights."""
    weights_sha256: str
    """Hash of the weights file."""
    size_hw: tuple[int, int]
    """Size of the timed frames."""
    miou_data: str | None
    """Dataset, number of images and size of the mIoU measurement; ``None`` if not measured."""
    frames: str
    """Description of the timed frames."""
    gflop: float
    """1e9 operations per frame; a multiply-accumulate counts as two."""
    compute_bound_ms: dict[str, float]
    """Precision -> time of these operations at the measured peak of this CPU."""
    bound_source: str
    """Method that measured the peak."""
    environment: dict[str, str]
    """Machine, libraries, date and command."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"schema": SCHEMA, "mode": "compare", **dataclasses.asdict(self)}


def run_comparison(
    weights: str,
    *,
    frames: Path | None,
    size_hw: tuple[int, int],
    data_dir: Path | None,
    calibration: Path | None,
    rounds: int,
    json_path: Path | None,
    markdown_path: Path | None,
    show_progress: bool,
) -> None:
    """Compare, print and write the report; the arguments are the options of ``esnet-bench compare``.

    Raises:
        BenchmarkError: Unsuitable frames or rounds, or the folder of a report is missing.
        EsnetError: The weights cannot be loaded or exported, or the dataset is missing.
    """
    check_folders(json_path, markdown_path)
    frame_set = load_frames(frames, size_hw)
    labelled = None if data_dir is None else _open_val_split(weights, data_dir)
    with progress_bar(show_progress) as progress:
        task = progress.add_task("loading", total=None)
        report = compare_weights(
            weights,
            frame_set,
            rounds=rounds,
            calibration=calibration,
            labelled=labelled,
            on_part=lambda text: progress.update(task, description=text),
        )
    console = wide_console()
    print_facts(console, {**report.environment, "frames": report.frames})
    console.print()
    console.print(rich_table(comparison_table(report)))
    for note in compare_notes(report):
        console.print(note, markup=False, soft_wrap=True)
    write_outputs(
        (json_path, lambda path: write_json(path, report.as_dict())),
        (markdown_path, lambda path: write_text(path, markdown_from_report(report))),
    )


def compare_weights(
    weights: str,
    frames: FrameSet,
    *,
    rounds: int = MIN_ROUNDS,
    calibration: Path | None = None,
    labelled: LabelledSplit | None = None,
    skip: Collection[str] = (),
    on_part: OnPart = lambda text: None,
) -> CompareReport:
    """Make and time every pipeline, and measure its label agreement and mIoU.

    Args:
        weights: Checkpoint, or name of shipped weights.
        frames: Frames to time, all of one size, multiples of 8.
        rounds: Interleaved rounds, at least 20.
        calibration: Frames for INT8 activation ranges; ``None`` uses the ranges shipped with the weights.
        labelled: Images for mIoU, labelled at their own size; ``None`` skips mIoU.
        skip: Names of pipelines to skip.
        on_part: Called with the name of each step.

    Raises:
        BenchmarkError: Fewer than 20 rounds, frames of several sizes, or no pipeline runs here.
    """
    size_hw = _size_of(frames)
    if rounds < MIN_ROUNDS:
        raise BenchmarkError(
            f"{rounds} rounds are too few for an interval", hint=f"--rounds {MIN_ROUNDS} or more"
        )
    environment = describe_environment()
    checkpoint = load_checkpoint(weights)
    left_out: list[str] = []
    names = [name for name in pipeline_makers() if name not in skip]
    with tempfile.TemporaryDirectory(prefix="esnet-compare-") as folder, ExitStack() as stack:
        setup = PipelineSetup(
            weights=weights, size_hw=size_hw, folder=Path(folder), calibration=calibration
        )
        workers = list(_open_workers(names, setup, frames, stack, left_out, on_part))
        if not workers:
            raise BenchmarkError(f"no pipeline runs here: {'; '.join(left_out)}")
        on_part("labels")
        labels = [worker.segment(frames.frames) for worker in workers]
        blocks = _interleaved_rounds(workers, rounds, on_part)
        mious = _measure_miou(workers, labelled, left_out, on_part) if labelled else {}
    on_part("peaks of this machine")
    machine = measure_machine(installed_backends())
    plan = ExportPlan(size_hw=size_hw, outputs=(LOGITS,))
    network = network_from_onnx(graph_from_network(checkpoint.network, plan))
    return CompareReport(
        results=tuple(results_of(workers, blocks, labels, mious)),
        left_out=tuple(left_out),
        rounds=rounds,
        weights=checkpoint.path.name,
        weights_sha256=checkpoint.sha256,
        size_hw=size_hw,
        miou_data=_describe(labelled) if labelled else None,
        frames=frames.description,
        gflop=network.flops / 1e9,
        compute_bound_ms={
            precision: bound.compute_ms for precision, bound in network.bounds(machine).items()
        },
        bound_source=machine.source,
        environment={**environment, "gpu after": describe_gpu_state()},
    )


def results_of(
    workers: Sequence[PipelineWorker],
    blocks: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[np.ndarray]],
    mious: Mapping[str, float],
) -> list[PipelineResult]:
    """Compare pipelines with the first one.

    Speed ratios are taken within a round, so a machine that slows down does not change them.

    Args:
        workers: Pipelines; only ``name`` and ``sha256`` are read.
        blocks: Call times in ms, by pipeline and round.
        labels: Labels (H, W) of the same frames, by pipeline.
        mious: Name -> mIoU; may lack names.
    """
    medians = np.array([[np.median(block) for block in own] for own in blocks])
    results = []
    for worker, own, own_medians, own_labels in zip(workers, blocks, medians, labels, strict=True):
        ratios = medians[0] / own_medians
        low, high = median_interval(ratios)
        results.append(
            PipelineResult(
                name=worker.name,
                end_to_end=summarize([time for block in own for time in block]),
                speed=float(np.median(ratios)),
                speed_low=low,
                speed_high=high,
                agreement=label_agreement(own_labels, labels[0]),
                miou=mious.get(worker.name),
                sha256=worker.sha256,
            )
        )
    return results


def comparison_table(report: CompareReport) -> TextTable:
    """Make a table with one row for each pipeline."""
    columns = ("pipeline", "n", "p50 ms", "95 % CI", "speed", "95 % CI", "FPS", "labels")
    has_miou = any(result.miou is not None for result in report.results)
    rows = []
    for result in report.results:
        summary = result.end_to_end
        row = [
            result.name,
            str(summary.n),
            f"{summary.p50:.1f}",
            f"{summary.p50_low:.1f}-{summary.p50_high:.1f}",
            f"{result.speed:.2f}x",
            f"{result.speed_low:.2f}-{result.speed_high:.2f}",
            f"{summary.fps:.1f}",
            f"{100 * result.agreement:.2f} %",
        ]
        miou = "" if result.miou is None else f"{100 * result.miou:.2f} %"
        rows.append([*row, miou] if has_miou else row)
    height, width = report.size_hw
    title = f"{report.weights} at {height}x{width}, uint8 frame in, uint8 labels out"
    return TextTable(title, (*columns, "mIoU") if has_miou else columns, rows)


def compare_notes(report: CompareReport) -> list[str]:
    """Explain the ratios and the bounds, and list what is missing."""
    bounds = report.compute_bound_ms
    bounds_text = ", ".join(f"{name} {ms:.0f} ms" for name, ms in bounds.items())
    lines = [
        f"speed and labels: relative to {report.results[0].name}; {report.rounds} interleaved rounds, "
        "ratios within a round; one process per pipeline.",
        f"weights {report.weights_sha256[:12]}",
        f"compute bound of {report.gflop:.1f} GFLOP on this CPU: {bounds_text} ({report.bound_source}).",
    ]
    for result in report.results:
        precision = result.name.rpartition(" ")[2]
        if result.name.startswith(OUR_NAME) and precision in bounds:
            times = result.end_to_end.p50 / bounds[precision]
            lines.append(f"{result.name}: {times:.2f} x its compute bound.")
    if report.miou_data:
        lines.append(f"mIoU: {report.miou_data}, with the same weights and activation ranges.")
    return lines + [f"left out: {line}" for line in report.left_out]


def markdown_from_report(report: CompareReport) -> str:
    """Return table, notes and environment as Markdown."""
    table = comparison_table(report)
    facts = {**report.environment, "frames": report.frames}
    items = [compare_notes(report), [f"{key}: {value}" for key, value in facts.items()]]
    lists = ["\n".join(f"- {item}" for item in part) for part in items]
    return "\n\n".join([f"**{table.title}**", markdown_from_table(table), *lists]) + "\n"


def _open_val_split(weights: str, data_dir: Path) -> LabelledSplit:
    checkpoint = load_checkpoint(weights)
    num_classes = checkpoint.network.config.num_classes
    label_set = label_set_for(num_classes, name=checkpoint.metadata.get("label_set"))
    return open_split(label_set.name, data_dir, "val")


def _size_of(frames: FrameSet) -> tuple[int, int]:
    sizes = {frame.shape[:2] for frame in frames.frames}
    height, width = min(sizes)
    if len(sizes) > 1 or height % 8 or width % 8:
        raise BenchmarkError(
            f"compare needs frames of one size, multiples of 8, got {sorted(sizes)}",
            hint="--size 512x1024",
        )
    return height, width


def _open_workers(
    names: Sequence[str],
    setup: PipelineSetup,
    frames: FrameSet,
    stack: ExitStack,
    left_out: list[str],
    on_part: OnPart,
) -> Iterator[PipelineWorker]:
    """Start a process for each pipeline; append those that fail to ``left_out``."""
    for name in names:
        on_part(f"making {name}")
        try:
            yield stack.enter_context(PipelineWorker(name, setup, frames.frames))
        except BenchmarkError as error:
            left_out.append(str(error))


def _interleaved_rounds(
    workers: Sequence[PipelineWorker], rounds: int, on_part: OnPart
) -> list[list[list[float]]]:
    """Time one block of each pipeline per round; returns ms by pipeline, round and call."""
    blocks: list[list[list[float]]] = [[] for _ in workers]
    for done in range(rounds):
        on_part(f"round {done + 1} of {rounds}")
        for worker, own in zip(workers, blocks, strict=True):
            own.append(worker.time_block(_BLOCK_SECONDS, _BLOCK_CALLS))
    return blocks


def _measure_miou(
    workers: Sequence[PipelineWorker],
    labelled: LabelledSplit,
    left_out: list[str],
    on_part: OnPart,
) -> dict[str, float]:
    """Measure the mIoU of each pipeline, 0 to 1 by name; append those that fail to ``left_out``."""
    mious = {}
    for worker in workers:
        on_part(f"mIoU of {worker.name}")
        try:
            pairs = _labelled_pairs(worker, labelled)
            mious[worker.name] = confusion_from_pairs(pairs, labelled.label_set).miou
        except BenchmarkError as error:
            left_out.append(f"mIoU of {error}")
    return mious


def _labelled_pairs(
    worker: PipelineWorker, labelled: LabelledSplit
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (labels, predictions) of every image; images are resized to the nearest multiples of 8."""
    size_hw = nearest_size(labelled[0].image.shape)
    for start in range(0, len(labelled), _IMAGES_AT_ONCE):
        indices = range(start, min(start + _IMAGES_AT_ONCE, len(labelled)))
        samples = [labelled[index] for index in indices]
        predictions = worker.segment([resize_frame(sample.image, size_hw) for sample in samples])
        yield from zip((sample.labels for sample in samples), predictions, strict=True)


def _describe(labelled: LabelledSplit) -> str:
    height, width = nearest_size(labelled[0].image.shape)
    return f"{labelled.dataset} {labelled.split}, {len(labelled)} images, at {height}x{width}"
