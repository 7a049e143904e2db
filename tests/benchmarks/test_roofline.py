from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.errors import BenchmarkError
from benchmarks.report.tables import markdown_from_document, print_document
from benchmarks.roofline import peak
from benchmarks.roofline.layers import (
    Device,
    Layer,
    Network,
    block_of,
    device_from_gpu,
    network_from_onnx,
)
from benchmarks.roofline.peak import measure_machine, measure_model
from benchmarks.roofline.report import (
    AnalysedModel,
    DeviceBounds,
    RooflineReport,
    analyse_model,
    document_from_report,
    gpus_table,
    parts_table,
)
from benchmarks.timing.statistics import summarize
from esnet.families import FAMILIES
from esnet.model import ESNet
from export.graph.qdq import (
    TENSORRT_SCHEME,
    insert_qdq,
    quantizable_tensors,
    quantized_convolutions,
)
from export.plan import ExportPlan, graph_from_network
from runtime.artefact.card import ModelCard
from runtime.backend import installed_backends
from runtime.errors import InvalidInput, ModelFileError
from runtime.machine.gpus import GPUS, gpu_named
from tests.conftest import SMALL_HW

PRECISIONS = ("fp32", "fp16", "int8")
NO_PADDING = {"outputs": ("logits",), "input": "tensor"}


@pytest.fixture(scope="module")
def network19() -> ESNet:
    return ESNet(FAMILIES["authors"].config(19)).eval()


@pytest.fixture(scope="module")
def full_size(network19):
    """The published network: 19 classes, 512x1024, as TensorRT gets it but for the padded head."""
    return network_from_onnx(graph_from_network(network19, ExportPlan(**NO_PADDING)))


@pytest.fixture(scope="module")
def gtx() -> Device:
    return device_from_gpu(gpu_named("GTX 1080 Ti"))


@pytest.fixture(scope="module")
def report(make_artefact, gtx) -> RooflineReport:
    path = make_artefact()
    network = network_from_onnx(onnx.load(path))
    model = AnalysedModel(name="small", card=ModelCard.from_file(path), network=network)
    here = Device(
        name="my CPU", peak_tops={"fp32": 0.1, "int8": 0.4}, bandwidth_gb_s=10, source="measured"
    )
    measured = {"fp32": summarize([50.0] * 20)}
    return RooflineReport(
        model=model,
        gpus=(DeviceBounds(device=gtx, bounds=network.bounds(gtx)),),
        model_here=model,
        here=DeviceBounds(device=here, bounds=network.bounds(here), measured=measured),
        notes=("a note",),
        environment={"cpu": "mine"},
    )


def tables_of(report: RooflineReport, *, show_layers: bool = False):
    return document_from_report(report, show_layers=show_layers).tables


def graph_of(nodes, shapes: dict[str, list], weights: dict[str, tuple], output: str):
    """Make a model of float tensors; the batch axis ``N`` stays open."""
    values = {name: helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()}
    arrays = [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in weights.items()]
    inputs = [value for name, value in values.items() if name != output]
    graph = helper.make_graph(nodes, "g", inputs, [values[output]], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv_model(channels: int = 16, side: int = 32):
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1])
    shape = ["N", channels, side, side]
    weights = {"w": (channels, channels, 3, 3), "b": (channels,)}
    return graph_of([node], {"x": shape, "y": shape}, weights, "y")


def hooked_flops(network: ESNet, size_hw: tuple[int, int]) -> int:
    """Count multiply-accumulates where they happen: twice the kernel for each pixel that it is laid on."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        pixels = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
        total += 2 * pixels.numel() * module.weight[0].numel()

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        network(torch.zeros(1, 3, *size_hw))
    for hook in hooks:
        hook.remove()
    return total


def test_the_published_network_takes_48_gflop(full_size):
    assert full_size.flops == 48_108_404_736


def test_flops_are_those_that_torch_computes(network19):
    graph = graph_from_network(network19, ExportPlan(size_hw=SMALL_HW, **NO_PADDING))
    assert network_from_onnx(graph).flops == hooked_flops(network19, SMALL_HW)


def test_work_grows_with_the_area(network19, full_size):
    graph = graph_from_network(network19, ExportPlan(size_hw=SMALL_HW, **NO_PADDING))
    assert full_size.flops == 64 * network_from_onnx(graph).flops


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_a_convolution_moves_its_input_output_and_weights(precision, width):
    layer = network_from_onnx(conv_model()).layers[0]
    values = 2 * 16 * 32 * 32 + 16 * 16 * 9 + 16
    assert layer.bytes_at(precision) == values * width
    assert layer.flops == 2 * 32 * 32 * 16 * 16 * 9


def test_the_parts_table_shows_work_bytes_and_intensity(gtx):
    table = parts_table(network_from_onnx(conv_model()), gtx, by_layer=True)
    flops, num_bytes = 2 * 32 * 32 * 16 * 16 * 9, 4 * (2 * 16 * 32 * 32 + 16 * 16 * 9 + 16)
    cells = [f"{flops / 1e9:.3f}", f"{num_bytes / 1e6:.1f}", f"{flops / num_bytes:.1f}"]
    assert [row[:4] for row in table.rows] == [["conv", *cells], ["all", *cells]]


def test_a_batch_shares_the_weights_and_its_rate_counts_frames(gtx):
    one, four = (network_from_onnx(conv_model(), batch=batch) for batch in (1, 4))
    weights = one.layers[0].weight_values
    assert four.flops == 4 * one.flops
    assert four.bytes_at("int8") - weights == 4 * (one.bytes_at("int8") - weights)
    bound = four.bound(gtx, "fp32")
    assert bound.fps == pytest.approx(4e3 / bound.ms)


def test_a_transposed_convolution_uses_its_kernel_once_a_pixel_read():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])
    shapes = {"x": ["N", 8, 4, 4], "y": ["N", 5, 8, 8]}
    model = graph_of([node], shapes, {"w": (8, 5, 2, 2)}, "y")
    assert network_from_onnx(model).flops == 2 * 4 * 4 * 8 * 5 * 2 * 2


@pytest.mark.parametrize(
    ("flops", "values", "memory_share", "ms"),
    [
        pytest.param(10**9, 10**6, 0.0, 1.0, id="compute: 1 ms over 0.04 ms"),
        pytest.param(10**7, 10**8, 1.0, 4.0, id="memory: 4 ms over 0.01 ms"),
    ],
)
def test_the_slower_of_compute_and_memory_bounds_a_layer(flops, values, memory_share, ms):
    layer = Layer(
        name="conv",
        block="conv",
        kind="Conv",
        nodes=("conv",),
        flops=flops,
        read_values=values // 2,
        written_values=values // 2,
        weight_values=0,
        fixed_bytes=0,
    )
    device = Device(name="d", peak_tops={"fp32": 1.0}, bandwidth_gb_s=100.0, source="made up")
    bound = Network(layers=(layer,), batch=1).bound(device, "fp32")
    assert (bound.memory_share, bound.ms) == (memory_share, pytest.approx(ms))


def test_the_bound_of_a_network_is_the_sum_of_its_layers(full_size, gtx):
    bound = full_size.bound(gtx, "fp32")
    layers = [layer.bound(gtx, "fp32") for _, layer in full_size.parts(by_layer=True)]
    assert bound.ms == pytest.approx(sum(layer.ms for layer in layers))
    assert bound.compute_ms == pytest.approx(full_size.flops / gtx.peak_tops["fp32"] / 1e9)
    assert {layer.memory_share for layer in layers} == {0.0, 1.0}


def test_a_residual_block_is_one_layer_for_each_convolution():
    def conv(index, data):
        names = [data, f"{index}.w", f"{index}.b"]
        return helper.make_node("Conv", names, [f"c{index}"], name=f"conv{index}", pads=[1] * 4)

    nodes = [
        conv(0, "x"),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        conv(1, "r0"),
        helper.make_node("Add", ["x", "c1"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    shape = ["N", 4, 8, 8]
    weights = {"0.w": (4, 4, 3, 3), "0.b": (4,), "1.w": (4, 4, 3, 3), "1.b": (4,)}
    layers = network_from_onnx(graph_of(nodes, {"x": shape, "y": shape}, weights, "y")).layers
    assert [layer.nodes for layer in layers] == [("conv0", "relu0"), ("conv1", "add", "relu")]
    assert [layer.read_values for layer in layers] == [256, 512]  # the skip is read, too


def test_what_others_read_as_well_is_not_folded_away():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Add", ["c", "r"], ["y"], name="add"),
    ]
    shape = ["N", 4, 8, 8]
    model = graph_of(nodes, {"x": shape, "y": shape}, {"w": (4, 4, 3, 3)}, "y")
    assert [layer.nodes for layer in network_from_onnx(model).layers] == [
        ("conv",),
        ("relu", "add"),
    ]


def test_a_concat_of_fresh_tensors_is_free(full_size):
    assert "Concat" not in {layer.kind for layer in full_size.layers}
    pool = next(layer for layer in full_size.layers if layer.name == "encoder.layers.3.pool")
    assert pool.written_values == 16 * 128 * 256


def test_frames_and_labels_are_bytes_at_every_precision(report):
    first, last = report.model.network.layers[0], report.model.network.layers[-1]
    height, width = SMALL_HW
    assert (first.kind, first.fixed_bytes) == ("Cast", 3 * height * width)
    assert (last.kind, last.fixed_bytes) == ("ArgMax", height * width)


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "onnxruntime"])
def test_every_node_of_an_artefact_has_its_place(make_artefact, target):
    model = onnx.load(make_artefact(optimized_for=target))
    placed = {name for layer in network_from_onnx(model).layers for name in layer.nodes}
    free = {node.name for node in model.graph.node if node.op_type in ("Concat", "Reshape")}
    assert placed | free == {node.name for node in model.graph.node}


def test_quantization_and_half_floats_change_neither_layers_nor_work(make_artefact):
    model = onnx.load(make_artefact())
    ranges = dict.fromkeys(quantizable_tensors(model), (-1.0, 1.0))
    quantized = network_from_onnx(insert_qdq(model, ranges, TENSORRT_SCHEME))
    half = network_from_onnx(onnx.load(make_artefact(precision="fp16")))
    plain = network_from_onnx(model)
    assert quantized.layers == plain.layers
    assert (half.flops, half.bytes_at("fp16")) == (plain.flops, plain.bytes_at("fp16"))


def test_a_shape_that_nobody_knows_is_refused():
    nodes = [
        helper.make_node("Mystery", ["x"], ["t"], domain="elsewhere"),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    shape = ["N", 4, 8, 8]
    model = graph_of(nodes, {"x": shape, "y": shape}, {}, "y")
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(BenchmarkError, match="shape of tensor 't' cannot be inferred"):
        network_from_onnx(model)


def test_int8_of_a_gtx_1080_ti_peaks_at_four_times_its_fp32(gtx):
    assert gtx.peak_tops["int8"] == 4 * gtx.peak_tops["fp32"]


def test_63_fps_on_a_gtx_1080_ti_is_possible_in_fp32_and_int8_only(full_size, gtx):
    needs = {p: 63.0 / full_size.bound(gtx, p).fps for p in PRECISIONS}
    assert 0.25 < needs["fp32"] < 0.35
    assert needs["int8"] < 0.1
    assert needs["fp16"] > 1


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.layers.3.conv", "encoder.layers.3"),
        ("encoder.initial_block.bn.pool.mul", "encoder.initial_block"),
        ("decoder.output_conv", "decoder.output_conv"),
        ("head.argmax", "head"),
    ],
)
def test_a_layer_belongs_to_its_module(name, block):
    assert block_of(name) == block


def test_all_lists_every_gpu_of_the_table(full_size):
    devices = list(map(device_from_gpu, GPUS.values()))
    table = gpus_table([DeviceBounds(device=d, bounds=full_size.bounds(d)) for d in devices])
    assert [row[0] for row in table.rows] == list(GPUS)
    by_name = {row[0]: row for row in table.rows}
    assert by_name["GTX 1080 Ti"][6] == "no"
    assert by_name["GTX 1080 Ti"][3].endswith(" %")


def test_the_parts_add_up_to_the_whole(report):
    blocks = tables_of(report)[1]
    column = blocks.columns.index("share")
    shares = [float(row[column].rstrip("%")) for row in blocks.rows]
    assert shares[-1] == 100.0
    assert sum(shares[:-1]) == pytest.approx(100.0, abs=0.05 * len(shares))


def test_layers_shows_every_layer(report):
    layers = tables_of(report, show_layers=True)[1]
    names = [layer.name for layer in report.model.network.layers]
    assert [row[0] for row in layers.rows] == [*names, "all"]


def test_measured_times_stand_beside_the_bound(report):
    bound = report.here.bounds["fp32"]
    here = tables_of(report)[2]
    rows = {row[0]: dict(zip(here.columns, row, strict=True)) for row in here.rows}
    assert rows["fp32"]["measured p50"] == "50.00"
    assert rows["fp32"]["x bound"] == f"{50.0 / bound.ms:.2f}"
    assert rows["int8"]["measured p50"] == "-"


def test_the_notes_explain_the_bound_and_name_what_is_missing(make_artefact):
    document = document_from_report(analyse(make_artefact()), show_layers=False)
    text = " ".join(document.notes)
    first = "Theoretical lower bound; real engines are slower."
    for part in (first, "bound / 15.87 ms", "cache", "not measured"):
        assert part in text


def test_nothing_is_cut_off_in_print(report, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_document(document_from_report(report, show_layers=True))
    text = capsys.readouterr().out
    assert "…" not in text
    for part in ("GTX 1080 Ti", "my CPU", "63 FPS (15.87 ms)", "a note"):
        assert part in text


def test_markdown_has_every_row_of_every_table(report):
    document = document_from_report(report, show_layers=False)
    text = markdown_from_document(document)
    rows = [row for table in document.tables for row in table.rows]
    assert all(f"| {' | '.join(row)} |" in text for row in rows)


def test_json_has_layers_bounds_and_measured_times(report, gtx):
    content = json.loads(json.dumps(report.as_dict()))
    network = report.model.network
    assert len(content["model"]["network"]["layers"]) == len(network.layers)
    (gpu,), here = content["gpus"], content["here"]
    assert (gpu["device"]["name"], tuple(gpu["bounds"])) == (gtx.name, PRECISIONS)
    assert (here["device"]["name"], tuple(here["bounds"])) == ("my CPU", ("fp32", "int8"))
    assert gpu["bounds"]["int8"]["ms"] == network.bound(gtx, "int8").ms
    assert here["measured"]["fp32"]["p50"] == 50.0


@pytest.mark.parametrize("backend", installed_backends())
def test_the_peaks_of_this_machine_are_measured(monkeypatch, backend):
    monkeypatch.setattr(peak, "_PROBES", ((32, 16),))
    monkeypatch.setattr(peak, "_ARRAY_VALUES", 2**20)
    monkeypatch.setattr(peak, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(peak, "num_cores", lambda: 1)
    device = measure_machine(backend)
    assert {"fp32", "int8"} <= set(device.peak_tops)
    assert min(*device.peak_tops.values(), device.bandwidth_gb_s) > 0
    assert "1 thread," in device.source
    assert backend in device.source


@pytest.mark.parametrize("is_int8", [False, True], ids=["float", "int8"])
def test_the_probe_is_a_valid_chain_of_four_convolutions(is_int8):
    model = peak._probe(32, 16, is_int8=is_int8)
    onnx.checker.check_model(model, full_check=True)
    assert network_from_onnx(model).flops == 2 * 4 * (3 * 32 * 16) ** 2
    assert len(quantized_convolutions(model)) == (4 if is_int8 else 0)


def test_the_fastest_call_counts_and_the_first_one_does_not(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    clock, durations = Clock(), iter([0.001, 5.0, 2.0, 4.0])

    def call() -> None:
        clock.now += next(durations)

    monkeypatch.setattr(peak, "time", clock)
    monkeypatch.setattr(peak, "_LEAST_SECONDS", 10.0)
    assert peak._best_seconds(call) == 2.0


def test_a_model_is_timed_at_the_precision_that_ran(make_artefact, quick, monkeypatch):
    monkeypatch.setattr(peak, "_TIMING", quick)
    measured = measure_model(make_artefact(), "onnxruntime", ("fp32", "int8"))
    assert list(measured) == ["fp32"]
    assert measured["fp32"].p50 > 0


def analyse(model, **settings) -> RooflineReport:
    options = {"gpu": "GTX 1080 Ti", "size_hw": None, "measure": False}
    return analyse_model(model, **{**options, **settings})


def test_a_run_writes_its_files(make_artefact, tmp_path):
    json_path, markdown_path = tmp_path / "a.json", tmp_path / "a.md"
    files = ["--json", str(json_path), "--markdown", str(markdown_path)]
    model = str(make_artefact())
    result = CliRunner().invoke(app, ["roofline", model, "--gpu", "ALL", "--no-measure", *files])
    assert result.exit_code == 0, result.exception
    assert len(json.loads(json_path.read_text())["gpus"]) == len(GPUS)
    assert "| RTX 4090 |" in markdown_path.read_text()
    assert f"wrote {json_path}" in result.stdout


def test_the_shipped_weights_are_the_default():
    report = analyse(None, size_hw=SMALL_HW)
    assert report.model.card.size_hw == SMALL_HW
    assert str(report.model).startswith("camvid, shipped weights")


def test_a_poor_precision_is_advised_against(make_artefact):
    report = analyse(make_artefact())
    assert any("FP16 runs at 1/64" in note for note in report.notes)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param({"gpu": "GTX 9999"}, InvalidInput, "unknown GPU 'GTX 9999'", id="gpu"),
        pytest.param({"size_hw": (512, 1024)}, BenchmarkError, "works at 64x128", id="size"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(make_artefact, settings, error, message):
    with pytest.raises(error, match=message):
        analyse(make_artefact(), **settings)


def test_a_report_without_a_folder_is_refused_before_any_work(make_artefact, tmp_path):
    out = str(tmp_path / "none" / "a.json")
    result = CliRunner().invoke(app, ["roofline", str(make_artefact()), "--json", out])
    assert isinstance(result.exception, InvalidInput)
    assert "does not exist" in str(result.exception)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"not a model at all", "is not an ONNX file", id="text"),
        pytest.param(conv_model().SerializeToString(), "without a model card", id="foreign"),
    ],
)
def test_what_is_no_artefact_is_refused(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        analyse(path)


def test_the_command_ends_bad_input_with_one_line(invoke):
    result = invoke("esnet-bench", "roofline", "--gpu", "GTX 9999")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == "error: unknown GPU 'GTX 9999'"
