"""Readers of files and options, each with a way to damage its input."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import onnx
import torch
import yaml

import benchmarks.accuracy.cli
import benchmarks.cli
import esnet.data.cli
import esnet.training.cli
import export.cli
import runtime.cli
from benchmarks.report.diff import diff_reports, diff_table
from benchmarks.report.tables import Document, print_document
from esnet.checkpoint import SHIPPED_RANGES, SHIPPED_WEIGHTS, load_checkpoint
from esnet.data.check import check_dataset
from esnet.data.datasets import open_split
from esnet.labels import CAMVID, load_label_set
from esnet.training.losses import label_counts
from esnet.training.run_folder import open_run_folder
from esnet.training.run_log import COLUMNS, read_rows
from export.engine.build import load_artefact
from export.graph.qdq import SCHEMES, insert_qdq
from export.inspect import inspect_onnx, label_set_yaml
from export.metadata import card_from_plan, with_card
from export.plan import ExportPlan, graph_from_network
from export.quantization.calibration import calibration_batches
from export.quantization.range_table import RangeTable, write_trt_cache
from export.report import json_from_inspection, text_from_inspection
from runtime.artefact.advice import form_advice, quantization_advice
from runtime.artefact.card import ModelCard
from runtime.artefact.engine_file import (
    EngineRecord,
    check_gpu,
    check_library,
    check_plan,
    gpu_note,
    read_record,
    write_engine,
)
from runtime.artefact.onnx_file import GRAPH_KEY, check_graph
from runtime.errors import EsnetError
from runtime.media.sources import open_source
from runtime.segmenter import Segmenter
from tests.robustness.mutate import TEXTS, nasty, spoil_bytes, spoil_json

Context = dict[str, Any]
Reader = Callable[[Random, Path, Context], str | None]
_MAX_FRAMES = 5
_HEAD_BYTES = 4096


def make_context(folder: Path) -> Context:
    """Make the sound files that the cases damage, and load all libraries."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    checkpoint = load_checkpoint("camvid")
    plan = ExportPlan(size_hw=(64, 128), optimized_for="openvino")
    card = card_from_plan(plan, CAMVID, name="camvid", source={"sha256": checkpoint.sha256})
    model = graph_from_network(checkpoint.network, plan)
    edges = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "ab"]
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    tiny = onnx.helper.make_model(onnx.helper.make_graph([node], "g", edges[:1], edges[1:]))
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    engine = folder / "sound.engine"
    record = EngineRecord(
        card=card,
        plan_sha256="0" * 64,
        onnx={"name": "camvid.onnx", "sha256": "0" * 64},
        tensorrt={"kind": "tensorrt", "version": "10.3.0"},
        target={"sms": ["8.6"], "gpu": "GTX 1080 Ti"},
        precision={"asked": "fp16", "built": {"Half": 66}, "fp32_nodes": []},
        profile=card.batch,
        kernels={"count": 75, "bytes_moved": 10**9, "output_types": {}},
        build={"key": "k", "command": "esnet-export build-engine a.onnx --fp16", "seconds": 1.0},
    )
    write_engine(engine, b"plan", record)
    state = {key: value.clone() for key, value in checkpoint.network.state_dict().items()}
    torch_file = io.BytesIO()
    torch.save({"state_dict": state, "esnet": {"label_set": "camvid"}}, torch_file)
    cv2.imwrite(str(folder / "image.png"), image)
    context = {
        "card": json.loads(card.to_json()),
        "model": model,
        "onnx": with_card(model, card).SerializeToString(),
        "tiny": with_card(tiny, card),
        "image": image,
        "image_path": folder / "image.png",
        "images": {suffix: _encoded(suffix, image) for suffix in _SUFFIXES},
        "videos": {suffix: _video(folder / f"v{suffix}", image) for suffix in (".mp4", ".avi")},
        "record": json.loads((folder / "sound.engine.json").read_text()),
        "safetensors": SHIPPED_WEIGHTS["camvid"].read_bytes(),
        "torch": torch_file.getvalue(),
        "state": state,
        "table": json.loads(SHIPPED_RANGES["camvid"].read_text()),
        "report": _report(),
        "config": {"recipe": {"epochs": 1, "crop_hw": [8, 8]}, "seed": 0, "made_with": {}},
    }
    return context


_SUFFIXES = (".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm")


def _encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def _video(path: Path, image: np.ndarray) -> bytes:
    codec = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), codec, 10.0, image.shape[1::-1])
    for shift in range(8):
        writer.write(np.roll(image, shift, 1))
    writer.release()
    return path.read_bytes()


def _report() -> dict[str, Any]:
    timing = {"p50": 10.0, "p50_low": 9.0, "p50_high": 11.0, "is_stable": True}
    rate = {"fps": 10.0, "fps_low": 9.0, "fps_high": 11.0, "is_stable": True}
    result = {
        "model": {"name": "openvino fp32", "sha256": "a" * 64},
        "batch": 1,
        "scopes": {"engine": timing, "end to end": rate},
    }
    return {
        "mode": "latency",
        "frames": "16 frames",
        "environment": {"cpu": "c", "gpu": "none", "libraries": {"openvino": "1"}},
        "machine_reference": {"p50": 1.0},
        "results": [result],
    }


def _json_file(random: Random, path: Path, value: Any) -> Path:
    """Write damaged JSON: other values, other bytes, or nested without end."""
    kind = random.random()
    if kind < 0.7:
        text = json.dumps(spoil_json(random, value))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif kind < 0.97:
        path.write_bytes(spoil_bytes(random, json.dumps(value).encode()))
    else:
        path.write_bytes(random.choice([b"[" * 200_000, b'{"schema":' + b"9" * 5000 + b"}"]))
    return path


def read_checkpoint(random: Random, place: Path, context: Context) -> None:
    path = place / random.choice(["a.safetensors", "a.pt"])
    data = context["safetensors" if path.suffix == ".safetensors" else "torch"]
    kind = random.randrange(5)
    if kind == 0 and path.suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8])
        header = json.dumps(spoil_json(random, json.loads(data[8 : 8 + size])))
        text = header.encode("utf-8", "surrogatepass")
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    elif kind == 1 and path.suffix == ".pt":
        old = zipfile.ZipFile(io.BytesIO(data))
        with zipfile.ZipFile(path, "w") as new:
            for entry in old.namelist():
                content = old.read(entry)
                is_pickle = entry.endswith(".pkl")
                new.writestr(entry, spoil_bytes(random, content) if is_pickle else content)
    elif kind == 2 and path.suffix == ".pt":
        state = dict(context["state"])
        for _ in range(random.choice([1, 1, 3, 30])):
            key = random.choice(list(state))
            with suppress(RuntimeError, AttributeError):  # it is odd already
                state[key] = _odd_tensor(random, state[key])
        content = {**state, "x": nasty(random)} if random.random() < 0.3 else state
        torch.save(content, path, pickle_protocol=random.choice([2, 2, 3, 4, 5]))
    else:
        area = random.choice([(0, 9), (0, 3000), (0, len(data)), (len(data) - 3000, len(data))])
        path.write_bytes(spoil_bytes(random, data, area))
    load_checkpoint(path).label_set  # noqa: B018 - a property that parses


def _odd_tensor(random: Random, tensor: torch.Tensor) -> Any:
    size = random.choice([0, 1, 256, 10**6, 10**9])
    makers = (
        lambda: tensor.half(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.to_sparse(),
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: torch.zeros(1).expand(size, *tensor.shape[1:]),
        lambda: torch.zeros(1).expand(*tensor.shape[:1], size, *tensor.shape[2:]),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([tensor.reshape(-1)] * 2),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor,
        lambda: tensor[None],
        lambda: None,
    )
    return random.choice(makers)()


def read_onnx(random: Random, place: Path, context: Context) -> str | None:
    path = place / "a.onnx"
    data = context["onnx"]
    if random.random() < 0.5:
        data = context["tiny"].SerializeToString()
    area = random.choice([(0, len(data)), (0, 300), (len(data) - 3000, len(data))])
    path.write_bytes(spoil_bytes(random, data, (max(0, area[0]), area[1])))
    if random.random() < 0.3:
        inspection = inspect_onnx(path)
        return (
            json_from_inspection(inspection)
            if random.random() < 0.3
            else text_from_inspection(inspection)
        )
    check_graph(path)
    load_artefact(path)
    return None


def read_card(random: Random, place: Path, context: Context) -> str | None:
    path = place / "a.onnx"
    _json_file(random, place / "card.json", context["card"])
    text = (place / "card.json").read_bytes().decode(errors="replace")
    model = onnx.ModelProto()
    model.CopyFrom(context["tiny"])
    kept = {e.key: e.value for e in model.metadata_props if e.key == GRAPH_KEY}
    onnx.helper.set_model_props(model, {**kept, "esnet_card": text})
    path.write_bytes(model.SerializeToString())
    if random.random() < 0.4:
        label_set_yaml(path)
        return text_from_inspection(inspect_onnx(path))
    with Segmenter.open(path, backend="null") as segmenter:
        labels = segmenter.segment(context["image"])
        segmenter.overlay(context["image"], labels)
        advice = (form_advice(segmenter.card, "openvino"), quantization_advice(segmenter.card, "a"))
    return "".join(filter(None, advice))


def read_engine_record(random: Random, place: Path, context: Context) -> str | None:
    path = place / "a.engine"
    path.write_bytes(random.choice([b"plan", b"", b"vtrt" + bytes(60)]))
    _json_file(random, place / "a.engine.json", context["record"])
    record = read_record(path)
    texts = [record.rebuild_command, gpu_note(path, record, gpu="a") or ""]
    checks = (
        lambda: check_library(path, record, kind="tensorrt", version="10.16.1"),
        lambda: check_gpu(path, record, gpu="a", sm=(7, 5)),
        lambda: check_plan(path, record),
    )
    for check in checks:
        try:
            check()
        except EsnetError as error:
            texts.append(f"{error} {error.hint}")
    return "".join(texts)


def read_range_table(random: Random, place: Path, context: Context) -> None:
    table = RangeTable.load(_json_file(random, place / "a.json", context["table"]))
    table.require(ModelCard.from_json(json.dumps(context["card"])))
    write_trt_cache(table, place / "a.cache")
    if random.random() < 0.2:
        insert_qdq(context["model"], table.ranges, SCHEMES["cpu"])


def read_run_folder(random: Random, place: Path, context: Context) -> None:
    if random.random() < 0.5:
        _json_file(random, place / "config.json", context["config"])
        open_run_folder(place, context["config"])
        return
    rows = "\r\n".join([",".join(COLUMNS), "1,1e-3,0.5,0.1,0.2,10.5,3.1", "2,1e-3,0.5,,,10.5,3.1"])
    (place / "metrics.csv").write_bytes(spoil_bytes(random, rows.encode()))
    read_rows(place / "metrics.csv", 10)


def read_dataset(random: Random, place: Path, context: Context) -> str:
    root = place / "data"
    for index in range(random.choice([1, 2, 3])):
        name = random.choice(
            [f"a{index}", f"a{index}", os.fsdecode(b"\xff%d" % index), f"[/]{index}"]
        )
        image = root / "train" / f"{name}{random.choice(['.png', '.jpg'])}"
        mask = root / "trainannot" / f"{name}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(context["images"][image.suffix])
        labels = np.full((40, 56), random.choice([0, 5, 11, 99]), random.choice(["u1", "u2"]))
        mask.write_bytes(_encoded(".png", labels))
        damaged = random.choice([image, mask, None])
        if damaged is not None and random.random() < 0.8:
            damaged.write_bytes(spoil_bytes(random, damaged.read_bytes(), (0, 200)))
        elif damaged is not None:
            damaged.unlink()
    if random.random() < 0.3:
        (root / "list.txt").write_bytes(
            spoil_bytes(random, b"train/a0.png trainannot/a0.png\ntrain/a1.png trainannot/a1.png\n")
        )
    text = check_dataset("camvid", root).as_text()
    split = open_split("camvid", root, random.choice(["train", "list.txt", "list"]))
    list(split)
    label_counts(split, place / "cache")
    for path in (place / "cache").iterdir():
        path.write_bytes(spoil_bytes(random, path.read_bytes()))
    label_counts(split, place / "cache")
    return "" if "\\x" in ascii(text) or "\\u" in ascii(text) else text


def read_image(random: Random, place: Path, context: Context) -> None:
    suffix = random.choice(_SUFFIXES)
    data = context["images"][random.choice([suffix, suffix, suffix, random.choice(_SUFFIXES)])]
    name = random.choice(["a", "a", os.fsdecode(b"\xff"), "[/]", "a" * 200])
    area = (0, random.choice([64, len(data)]))
    (place / f"{name}{suffix}").write_bytes(spoil_bytes(random, data, area))
    (place / "sound.png").write_bytes(context["images"][".png"])
    source = open_source(place)
    frames = [frame.name for frame in source]
    assert len(frames) + len(source.skipped) == 2, (frames, source.skipped)


def read_video(random: Random, place: Path, context: Context) -> None:
    suffix = random.choice(list(context["videos"]))
    data = context["videos"][suffix]
    name = random.choice(["a", "10:30", os.fsdecode(b"\xff"), "-x", "x%03d", "concat:a"])
    area = random.choice([(0, len(data)), (0, 600), (len(data) - 1500, len(data))])
    path = Path(f"{name}{suffix}")
    path.write_bytes(spoil_bytes(random, data, (max(0, area[0]), area[1])))
    for index, _ in enumerate(open_source(path)):
        if index == _MAX_FRAMES:
            break


def read_list(random: Random, place: Path, context: Context) -> None:
    (place / "a.png").write_bytes(context["images"][".png"])
    path = place / "list.txt"
    lines = [b"a.png", b"# comment", b"b.png", random.choice(TEXTS).encode("utf-8", "replace")]
    path.write_bytes(spoil_bytes(random, b"\n".join(lines)))
    if random.random() < 0.5:
        list(open_source(path))
        return
    card = ModelCard.from_json(json.dumps(context["card"]))
    list(calibration_batches(path, card, 4))


def read_report(random: Random, place: Path, context: Context) -> None:
    (place / "a.json").write_text(json.dumps(context["report"]))
    paths = [place / "a.json", _json_file(random, place / "b.json", context["report"])]
    random.shuffle(paths)
    changes, _ = diff_reports(*paths, 0.05)
    print_document(Document({}, [diff_table(changes)], []))


def read_label_set(random: Random, place: Path, context: Context) -> None:
    path = place / random.choice(["a.yaml", "a.json"])
    sound = CAMVID.as_dict() | {"label_values": {1: 0, 2: 1, 255: 11}}
    if path.suffix == ".json":
        _json_file(random, path, sound)
    else:
        text = yaml.safe_dump(sound)
        bombs = [b"a: &a [1]\n" + b"b: [" + b"*a, " * 1000 + b"]", b"[" * 5000, b"? " * 5000]
        data = random.choice(bombs) if random.random() < 0.05 else text.encode()
        path.write_bytes(spoil_bytes(random, data))
    load_label_set(path)


_COMMANDS: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {
    "to-onnx": (
        export.cli.main,
        ["esnet-export", "to-onnx", "none.pt"],
        ["--size", "--batch", "--mean", "--std", "--label-set", "--input", "--output", "--opset"],
    ),
    "quantize": (
        export.cli.main,
        ["esnet-export", "quantize", "a.onnx"],
        ["--calibration", "--table", "--count", "--method", "--scheme", "--keep", "-o"],
    ),
    "build-engine": (
        export.cli.main,
        ["esnet-export", "build-engine", "a.onnx", "--fp16"],
        ["--batch", "--target", "--frames", "--workspace", "--timing-cache", "-o"],
    ),
    "segment": (
        runtime.cli.segment_main,
        ["esnet-segment", "image.png", "-m", "a.onnx", "--backend", "null", "-o", "out.png"],
        ["--draw", "--alpha", "--precision", "--reconnect", "--size", "--pixel-format", "-o"],
    ),
    "bench": (
        benchmarks.cli.main,
        ["esnet-bench", "none.onnx", "--max-seconds", "0.1"],
        ["--frames", "--size", "--mode", "--batch", "--target-fps", "--json", "--csv", "--html"],
    ),
    "diff": (benchmarks.cli.main, ["esnet-bench", "diff", "a.json", "a.json"], ["--max-slower"]),
    "roofline": (
        benchmarks.cli.main,
        ["esnet-bench", "roofline", "--no-measure", "a.onnx"],
        ["--gpu", "--size", "--json", "--markdown"],
    ),
    "eval": (
        benchmarks.accuracy.cli.main,
        ["esnet-eval", "-m", "none.pt", "--data", "data"],
        ["--dataset", "--split", "--size", "--backend", "--precision", "--max-images", "--json"],
    ),
    "train": (
        esnet.training.cli.main,
        ["esnet-train", "--data", "none", "-o", "run"],
        ["--dataset", "--recipe", "--init", "--train-split", "--epochs", "--batch-size", "--crop"],
    ),
    "data": (
        esnet.data.cli.main,
        ["esnet-data", "split", "data"],
        ["--val", "--test", "--seed", "-o"],
    ),
}


def read_options(random: Random, place: Path, context: Context) -> str:
    """Run a command with odd values; it must end with a known code and at most one error line."""
    (place / "image.png").write_bytes(context["images"][".png"])
    (place / "a.onnx").write_bytes(context["tiny"].SerializeToString())
    (place / "a.json").write_text(json.dumps(context["report"]))
    main, words, options = random.choice(list(_COMMANDS.values()))
    words = list(words)
    for _ in range(random.choice([1, 1, 2, 4])):
        value = random.choice([*TEXTS, *map(str, _NUMBERS), "a.onnx", "image.png", "folder/", "/"])
        words += [random.choice(options), value.replace("\0", "0")]
    sys.argv = words
    code: Any = None
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    error = sys.stderr.getvalue() if isinstance(sys.stderr, io.StringIO) else ""
    assert code in (None, 0, 1, 2, 3), (code, words, error)
    assert code not in (2, 3) or error.count("error: ") == 1, (words, error)
    assert not list(place.rglob(".*")), (words, "temporary files are left")
    return error.replace("\n", "")


_NUMBERS = ("0", "-1", "1", "8", "8x8", "512x1024", "1:1:8", "nan", "inf", "1e9", "9" * 5000, "0.1")

# Number of cases of each in a round, and the reader.
READERS: dict[str, tuple[int, Reader]] = {
    "checkpoint": (2, read_checkpoint),
    "onnx": (3, read_onnx),
    "card": (6, read_card),
    "engine record": (5, read_engine_record),
    "range table": (3, read_range_table),
    "run folder": (3, read_run_folder),
    "dataset": (4, read_dataset),
    "image": (6, read_image),
    "video": (4, read_video),
    "list": (3, read_list),
    "report": (4, read_report),
    "label set": (4, read_label_set),
    "options": (4, read_options),
}
