"""``esnet-bench compare``: time the same weights in every pipeline of this machine, in interleaved rounds."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
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
from benchmarks.report.tables import Document, TextTable, progress_bar
from benchmarks.roofline.layers import Device, network_from_onnx
from benchmarks.roofline.peak import measure_machine
from benchmarks.timing.statistics import Summary, bootstrap_interval, summarize
from esnet.checkpoint import SHIPPED_RANGES, load_checkpoint
from esnet.data.datasets import open_split_of_model
from esnet.data.labelled import LabelledSplit, nearest_size
from esnet.metrics import confusion_from_pairs, label_agreement
from export.plan import ExportPlan, graph_from_network
from runtime.artefact.card import LOGITS
from runtime.backend import installed_backends
from runtime.machine.gpus import gpu_at
from runtime.machine.machine import nvidia_gpus
from runtime.media.frames import resize_frame


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineResult:
    """Speed and accuracy of a pipeline."""

    name: str
    """Name of the pipeline."""
    end_to_end: Summary
    """Time from frame to labels, ms, all rounds together."""
    speed: float
    """Speed ratio to the first pipeline: median over the rounds of the ratio of medians."""
    speed_interval: tuple[float, float]
    """Bootstrap 95 % interval of ``speed`` over the rounds."""
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
    """Dataset and number of images of the mIoU measurement; ``None`` if not measured."""
    gflop: float
    """1e9 operations per frame; a multiply-accumulate counts as two."""
    machine: Device
    """Measured peaks of this CPU."""
    compute_ms: dict[str, float]
    """Precision -> milliseconds that the operations of a frame take at the peak."""
    environment: dict[str, str]
    """Machine, libraries, date, command and frames."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"schema": 4, "mode": "compare", **dataclasses.asdict(self)}


def compare_pipelines(
    weights: str,
    *,
    frames: Path | None,
    size_hw: tuple[int, int],
    data_dir: Path | None,
    calibration: Path | None,
    rounds: int,
    device: str | int | None = None,
) -> CompareReport:
    """Make, time and evaluate every pipeline; the arguments are the options of ``esnet-bench compare``.

    Raises:
        BenchmarkError: No pipeline runs here, or the calibration frames do not exist.
        EsnetError: The weights, the frames or the dataset cannot be loaded.
    """
    if calibration and str(calibration) not in SHIPPED_RANGES and not calibration.exists():
        raise BenchmarkError(
            f"calibration frames {str(calibration)!r} do not exist",
            hint="give an image, a folder, a video or a list",
        )
    gpu = None if device is None else gpu_at(nvidia_gpus(), device).index
    checkpoint, frame_set = load_checkpoint(weights), load_frames(frames, size_hw)
    environment = {**describe_environment(), "frames": frame_set.description}
    labelled = None
    if data_dir is not None:
        labelled = open_split_of_model(checkpoint.label_set, data_dir, "val")
    with tempfile.TemporaryDirectory(prefix="esnet-compare-") as folder, progress_bar() as progress:
        task = progress.add_task("", total=None)
        workers, left_out = _run_pipelines(
            PipelineSetup(weights, size_hw, Path(folder), calibration, gpu),
            frame_set,
            rounds,
            labelled,
            lambda step: progress.update(task, description=step),
        )
    machine = measure_machine(installed_backends()[0])
    plan = ExportPlan(size_hw=size_hw, outputs=(LOGITS,))  # logits: the head has no padded classes
    flops = network_from_onnx(graph_from_network(checkpoint.network, plan)).flops
    return CompareReport(
        results=tuple(results_of(workers)),
        left_out=tuple(left_out),
        rounds=rounds,
        weights=checkpoint.path.name,
        weights_sha256=checkpoint.sha256,
        size_hw=size_hw,
        miou_data=f"{labelled.dataset} val, {len(labelled)} images" if labelled else None,
        gflop=flops / 1e9,
        machine=machine,
        compute_ms={name: flops / tops / 1e9 for name, tops in machine.peak_tops.items()},
        environment={**environment, "gpu after": describe_gpu_state()},
    )


def results_of(workers: Sequence[PipelineWorker]) -> list[PipelineResult]:
    """Compare measured pipelines with the first one.

    Speed ratios are taken within a round, so a machine that slows down does not change them.
    """
    medians = np.array([[np.median(block) for block in worker.blocks_ms] for worker in workers])
    results = []
    for worker, own_medians in zip(workers, medians, strict=True):
        ratios = medians[0] / own_medians
        results.append(
            PipelineResult(
                name=worker.name,
                end_to_end=summarize([time for block in worker.blocks_ms for time in block]),
                speed=float(np.median(ratios)),
                speed_interval=bootstrap_interval(ratios),
                agreement=label_agreement(worker.labels, workers[0].labels),
                miou=worker.miou,
                sha256=worker.sha256,
            )
        )
    return results


def document_from_report(report: CompareReport) -> Document:
    """Format a report: environment, a row for each pipeline, notes on ratios, bounds and what is missing."""
    columns = ["pipeline", "n", "p50 ms", "95 % CI", "speed", "95 % CI", "FPS", "labels"]
    if report.miou_data:
        columns.append("mIoU")
    bounds = ", ".join(f"{name} {ms:.0f} ms" for name, ms in report.compute_ms.items())
    notes = [
        f"speed and labels: relative to {report.results[0].name}; {report.rounds} interleaved rounds, "
        "ratios within a round; one process per pipeline.",
        f"weights {report.weights_sha256[:12]}",
        f"compute bound of {report.gflop:.1f} GFLOP on this CPU: {bounds} ({report.machine.source}).",
    ]
    rows = []
    for result in report.results:
        summary = result.end_to_end
        row = [
            result.name,
            str(summary.n),
            f"{summary.p50:.1f}",
            f"{summary.p50_low:.1f}-{summary.p50_high:.1f}",
            f"{result.speed:.2f}x",
            "{:.2f}-{:.2f}".format(*result.speed_interval),
            f"{summary.fps:.1f}",
            f"{100 * result.agreement:.2f} %",
            "" if result.miou is None else f"{100 * result.miou:.2f} %",
        ]
        rows.append(row[: len(columns)])
        if bound_ms := report.compute_ms.get(CPU_PRECISIONS.get(result.name, "")):
            notes.append(f"{result.name}: {summary.p50 / bound_ms:.2f} x its compute bound.")
    if report.miou_data:
        notes.append(
            f"mIoU: {report.miou_data}, at their own size, with the same weights and activation ranges."
        )
    notes += [f"left out: {line}" for line in report.left_out]
    height, width = report.size_hw
    title = f"{report.weights} at {height}x{width}, uint8 frame in, uint8 labels out"
    table = TextTable(title, tuple(columns), rows)
    return Document(report.environment, [table], notes)


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
                worker.blocks_ms.append(worker.time_block())
        if labelled is not None:
            for worker in workers:
                show(f"mIoU of {worker.name}")
                try:
                    worker.miou = _miou(worker, labelled)
                except BenchmarkError as error:
                    left_out.append(f"mIoU of {error}")
    return workers, left_out


def _miou(worker: PipelineWorker, labelled: LabelledSplit) -> float:
    """Measure mIoU on images resized to the nearest multiples of 8."""

    def predict(image: np.ndarray) -> np.ndarray:
        return worker.segment([resize_frame(image, nearest_size(image.shape))])[0]

    pairs = ((sample.labels, predict(sample.image)) for sample in labelled)
    return confusion_from_pairs(pairs, labelled.label_set).miou
