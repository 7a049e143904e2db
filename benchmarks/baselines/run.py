"""``esnet-bench compare``: time the same weights in every pipeline of this machine, in interleaved rounds."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines.pipelines import CPU_PRECISIONS, PipelineSetup, pipeline_makers
from benchmarks.baselines.worker import PipelineWorker
from benchmarks.environment import describe_environment, describe_gpu_state
from benchmarks.errors import BenchmarkError
from benchmarks.frames import FrameSet, load_frames
from benchmarks.report import tables
from benchmarks.report.tables import TextTable
from benchmarks.roofline.layers import Device, RooflineBound, network_from_onnx
from benchmarks.roofline.peak import measure_machine
from benchmarks.timing.statistics import Summary, median_interval, summarize
from esnet.checkpoint import Checkpoint, load_checkpoint
from esnet.data.datasets import open_split
from esnet.data.labelled import LabelledSplit, nearest_size
from esnet.labels import label_set_for
from esnet.metrics import confusion_from_pairs, label_agreement
from export.plan import ExportPlan, graph_from_network
from runtime.artefact.card import LOGITS
from runtime.backend import installed_backends
from runtime.media.frames import resize_frame

MIN_ROUNDS = 20
_BLOCK_SECONDS, _BLOCK_CALLS = 0.2, 2
_IMAGES_AT_ONCE = 16


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
    machine: Device
    """Measured peaks of this CPU."""
    bounds: dict[str, RooflineBound]
    """Precision -> bound of a frame at these peaks."""
    environment: dict[str, str]
    """Machine, libraries, date, command and frames."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"schema": 2, "mode": "compare", **dataclasses.asdict(self)}


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
) -> CompareReport:
    """Make, time and evaluate every pipeline, print and write the report.

    The arguments are the options of ``esnet-bench compare``.

    Raises:
        BenchmarkError: Unsuitable size or rounds, a report folder is missing, or no pipeline runs here.
        EsnetError: The weights, the frames or the dataset cannot be loaded.
    """
    tables.check_folders(json_path, markdown_path)
    _check_options(size_hw, rounds)
    checkpoint, frame_set = load_checkpoint(weights), load_frames(frames, size_hw)
    environment = {**describe_environment(), "frames": frame_set.description}
    labelled = None if data_dir is None else _open_val_split(checkpoint, data_dir)
    with (
        tempfile.TemporaryDirectory(prefix="esnet-compare-") as name,
        tables.progress_bar(show_progress) as progress,
    ):
        task = progress.add_task("", total=None)
        setup = PipelineSetup(
            weights=weights, size_hw=size_hw, folder=Path(name), calibration=calibration
        )
        workers, left_out = _run_pipelines(
            setup, frame_set, rounds, labelled, lambda step: progress.update(task, description=step)
        )
    machine = measure_machine(installed_backends())
    plan = ExportPlan(size_hw=size_hw, outputs=(LOGITS,))  # logits: the head has no padded classes
    network = network_from_onnx(graph_from_network(checkpoint.network, plan))
    report = CompareReport(
        results=tuple(results_of(workers)),
        left_out=tuple(left_out),
        rounds=rounds,
        weights=checkpoint.path.name,
        weights_sha256=checkpoint.sha256,
        size_hw=size_hw,
        miou_data=_describe(labelled) if labelled else None,
        frames=frame_set.description,
        gflop=network.flops / 1e9,
        machine=machine,
        bounds=network.bounds(machine),
        environment={**environment, "gpu after": describe_gpu_state()},
    )
    document = document_from_report(report)
    tables.print_document(document)
    tables.write_outputs(
        (json_path, lambda path: tables.write_json(path, report.as_dict())),
        (
            markdown_path,
            lambda path: tables.write_text(path, tables.markdown_from_document(document)),
        ),
    )
    return report


def results_of(workers: Sequence[PipelineWorker]) -> list[PipelineResult]:
    """Compare measured pipelines with the first one.

    Speed ratios are taken within a round, so a machine that slows down does not change them.
    """
    medians = np.array([[np.median(block) for block in worker.blocks_ms] for worker in workers])
    results = []
    for worker, own_medians in zip(workers, medians, strict=True):
        ratios = medians[0] / own_medians
        low, high = median_interval(ratios)
        results.append(
            PipelineResult(
                name=worker.name,
                end_to_end=summarize([time for block in worker.blocks_ms for time in block]),
                speed=float(np.median(ratios)),
                speed_low=low,
                speed_high=high,
                agreement=label_agreement(worker.labels, workers[0].labels),
                miou=worker.miou,
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
    bounds_ms = {name: bound.compute_ms for name, bound in report.bounds.items()}
    bounds_text = ", ".join(f"{name} {ms:.0f} ms" for name, ms in bounds_ms.items())
    lines = [
        f"speed and labels: relative to {report.results[0].name}; {report.rounds} interleaved rounds, "
        "ratios within a round; one process per pipeline.",
        f"weights {report.weights_sha256[:12]}",
        f"compute bound of {report.gflop:.1f} GFLOP on this CPU: {bounds_text} ({report.machine.source}).",
    ]
    for result in report.results:
        if bound_ms := bounds_ms.get(CPU_PRECISIONS.get(result.name, "")):
            times = result.end_to_end.p50 / bound_ms
            lines.append(f"{result.name}: {times:.2f} x its compute bound.")
    if report.miou_data:
        lines.append(f"mIoU: {report.miou_data}, with the same weights and activation ranges.")
    return lines + [f"left out: {line}" for line in report.left_out]


def document_from_report(report: CompareReport) -> tables.Document:
    """Format a report: environment, table and notes."""
    return tables.Document(report.environment, [comparison_table(report)], compare_notes(report))


def _check_options(size_hw: tuple[int, int], rounds: int) -> None:
    height, width = size_hw
    if height % 8 or width % 8:
        raise BenchmarkError(
            f"compare needs a size in multiples of 8, got {height}x{width}", hint="--size 512x1024"
        )
    if rounds < MIN_ROUNDS:
        raise BenchmarkError(
            f"{rounds} rounds are too few for an interval", hint=f"--rounds {MIN_ROUNDS} or more"
        )


def _open_val_split(checkpoint: Checkpoint, data_dir: Path) -> LabelledSplit:
    num_classes = checkpoint.network.config.num_classes
    label_set = label_set_for(num_classes, name=checkpoint.metadata.get("label_set"))
    return open_split(label_set.name, data_dir, "val")


def _run_pipelines(
    setup: PipelineSetup,
    frames: FrameSet,
    rounds: int,
    labelled: LabelledSplit | None,
    show: Callable[[str], None],
) -> tuple[list[PipelineWorker], list[str]]:
    """Run every pipeline in its own process; also return what is missing, with the reason."""
    workers: list[PipelineWorker] = []
    left_out: list[str] = []
    with ExitStack() as stack:
        for name in pipeline_makers():
            show(f"making {name}")
            try:
                workers.append(stack.enter_context(PipelineWorker(name, setup, frames.frames)))
            except BenchmarkError as error:
                left_out.append(str(error))
        if not workers:
            raise BenchmarkError(f"no pipeline runs here: {'; '.join(left_out)}")
        show("labels")
        for worker in workers:
            worker.labels = worker.segment(frames.frames)
        for done in range(rounds):
            show(f"round {done + 1} of {rounds}")
            for worker in workers:
                worker.blocks_ms.append(worker.time_block(_BLOCK_SECONDS, _BLOCK_CALLS))
        if labelled is not None:
            left_out += _measure_miou(workers, labelled, show)
    return workers, left_out


def _measure_miou(
    workers: Sequence[PipelineWorker], labelled: LabelledSplit, show: Callable[[str], None]
) -> list[str]:
    """Measure the mIoU of each pipeline; returns the reasons of those that fail."""
    left_out = []
    for worker in workers:
        show(f"mIoU of {worker.name}")
        try:
            pairs = _labelled_pairs(worker, labelled)
            worker.miou = confusion_from_pairs(pairs, labelled.label_set).miou
        except BenchmarkError as error:
            left_out.append(f"mIoU of {error}")
    return left_out


def _labelled_pairs(
    worker: PipelineWorker, labelled: LabelledSplit
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield labels and predictions of each image, resized to the nearest multiples of 8."""
    size_hw = nearest_size(labelled[0].image.shape)
    for start in range(0, len(labelled), _IMAGES_AT_ONCE):
        stop = min(start + _IMAGES_AT_ONCE, len(labelled))
        samples = [labelled[index] for index in range(start, stop)]
        predictions = worker.segment([resize_frame(sample.image, size_hw) for sample in samples])
        yield from zip((sample.labels for sample in samples), predictions, strict=True)


def _describe(labelled: LabelledSplit) -> str:
    height, width = nearest_size(labelled[0].image.shape)
    return f"{labelled.dataset} {labelled.split}, {len(labelled)} images, at {height}x{width}"
