"""Kernel lists: rows of real TensorRT-RTX logs, and the JSON of TensorRT's engine inspector."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from export.engine.build import build_engine
from export.engine.kernels import (
    Edge,
    Kernel,
    convolution_types,
    kernels_from_inspector,
    kernels_from_log,
)
from export.engine.precision import require_types
from export.engine.trt_builder import BuildOptions, build_plan
from export.errors import PrecisionError
from runtime.artefact.card import BatchRange
from runtime.artefact.engine_file import read_record
from runtime.tensorrt_api import load_tensorrt
from tests import fake_trt

RTX_LOG = Path(__file__).parent / "golden" / "rtx_layers_fp16.txt"
ROW_MAJOR_FP32 = "Row major linear FP32"
HALF = "Channel major FP16 format where channel % 8 == 0"
DYNAMIC = "N/A due to dynamic shapes"


def layer(kind, name, *inputs, output=HALF, **fields):
    """A layer as the inspector of TensorRT 8.6 and 10 prints it."""

    def tensors(texts):
        return [
            {"Name": "t", "Dimensions": [-1, 16, 8, 8], "Format/Datatype": text} for text in texts
        ]

    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": tensors(inputs),
        "Outputs": tensors([output]),
        **fields,
    }


def kernels_of(*layers):
    return kernels_from_inspector(json.dumps({"Layers": layers}))


@pytest.fixture
def rtx_kernels():
    return kernels_from_log([RTX_LOG.read_text()])


def test_the_kernels_of_a_real_log_are_read(rtx_kernels):
    assert Counter(kernel.kind for kernel in rtx_kernels) == {
        "kgen": 5,
        "correlation": 3,
        "shape_call": 1,
        "maxpool": 1,
        "deconv": 1,
        "signal": 1,
        "wait": 1,
    }
    first = rtx_kernels[1]
    assert first.inputs == (Edge("UInt8", 64 * 128 * 3),)
    assert first.outputs == (Edge("Half", 2 * 4 * 64 * 128), Edge("Half", 2 * 3 * 64 * 128))
    assert rtx_kernels[0].num_bytes == 0


def test_convolutions_of_a_real_log_are_counted_by_their_kind(rtx_kernels):
    nameless = next(kernel for kernel in rtx_kernels if kernel.name == "__mye7387_myl0_13")
    assert convolution_types([nameless]) == {"Half": 1}
    assert convolution_types(rtx_kernels) == {"Half": 4}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Reformat", "Reformatting CopyNode for Input Tensor 0 to encoder.layers.3.conv"),
        ("NoOp", "encoder.layers.3.conv_output copy"),
        ("PointWiseV2", "PWN(encoder.layers.3.conv.relu)"),
        ("CaskPooling", "encoder.layers.3.conv.pool"),
        ("kgen", "__myl_ReshConv_myl0_3"),
    ],
)
def test_a_layer_named_after_a_convolution_is_none(kind, name):
    """Each reads fp32; the convolutions of the engine compute in fp16."""
    convolution = layer("CaskConvolution", "encoder.layers.3.conv", HALF, Weights={"Type": "Half"})
    kernels = kernels_of(layer(kind, name, ROW_MAJOR_FP32), convolution)
    assert convolution_types(kernels) == {"Half": 1}
    require_types(kernels, "fp16", num_fp32=0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("CaskGemmConvolution", "a"),
        ("CaskJitConv", "a"),
        ("CaskDeconvolutionV2", "a"),
        ("CudaDepthwiseConvolution", "a"),
        ("correlation", "__mye1_myl0_2"),
        ("deconv", "a"),
        ("runtime_fusion", "encoder.layers.3.conv_myl0_4"),
        ("gemm", "encoder.layers.3.conv_myl0_4"),
        ("Myelin", "{ForeignNode[encoder.layers.3.conv...decoder.output_conv]}"),
    ],
)
def test_every_kind_of_convolution_is_counted(kind, name):
    kernels = kernels_of(layer(kind, name, ROW_MAJOR_FP32))
    assert convolution_types(kernels) == {"Float": 1}
    with pytest.raises(
        PrecisionError, match="fp16 was requested, but of 1 convolutions 1 in Float"
    ):
        require_types(kernels, "fp16", num_fp32=0)


def test_a_matrix_product_is_no_convolution():
    assert convolution_types(kernels_of(layer("gemm", "head.matmul_myl0_4", HALF))) == {}


def test_the_type_of_the_weights_is_the_compute_type():
    """An INT8 convolution that adds a residual in float reads both types."""
    weights = {"Type": "Int8", "Count": 2304}
    int8 = "Thirty-two wide channel vectorized row major Int8 format"
    kernels = kernels_of(layer("CaskConvolution", "conv", int8, ROW_MAJOR_FP32, Weights=weights))
    assert convolution_types(kernels) == {"Int8": 1}


def test_a_dynamic_batch_hides_the_formats_but_not_the_weights():
    layers = [
        layer("CaskConvolution", f"conv{index}", DYNAMIC, Weights={"Type": "Half"}, output=DYNAMIC)
        for index in range(9)
    ]
    kernels = kernels_of(*layers)
    assert convolution_types(kernels) == {"Half": 9}
    assert {edge.type for kernel in kernels for edge in kernel.outputs} == {"?"}
    require_types(kernels, "fp16", num_fp32=0)
    with pytest.raises(PrecisionError, match="9 in Half"):
        require_types(kernels, "fp32", num_fp32=0)


def test_a_convolution_of_unknown_type_is_no_precision_error():
    unknown = Kernel("CaskConvolution", "c", (Edge("?", 8),), (Edge("?", 8),))
    half = Kernel("CaskConvolution", "c", (Edge("Half", 8),), (Edge("Half", 8),))
    require_types([unknown] * 60, "fp16", num_fp32=0)
    require_types([unknown] * 60 + [half], "fp16", num_fp32=0)
    with pytest.raises(PrecisionError, match="1 in Half"):
        require_types([unknown] * 60 + [half], "fp32", num_fp32=0)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"Layers": [', id="truncated"),
        pytest.param("[]", id="list"),
        pytest.param('{"Layers": 3}', id="no-layers"),
        pytest.param('{"Layers": [{"Inputs": [{"Dimensions": ["x"]}]}]}', id="dimensions"),
        pytest.param('{"Layers": [{"Outputs": ["name"]}]}', id="names-alone"),
    ],
)
def test_an_engine_with_unreadable_kernels_is_written_with_a_note(
    text, make_artefact, tmp_path, monkeypatch
):
    """A build takes minutes: a new layout of the inspector's JSON must not cost it."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt.fake_tensorrt("10.3.0"))
    monkeypatch.setattr("export.engine.build.cuda_gpu", lambda *_: ("RTX 3060", (8, 6)))
    monkeypatch.setattr(fake_trt._Inspector, "get_engine_information", lambda *_: text)
    path = tmp_path / "small.engine"
    options = BuildOptions(precision="fp32", tensorrt="tensorrt", timing_cache_path=tmp_path / "t")
    report = build_engine(make_artefact(), path, options, command=[])
    assert report.notes == ("tensorrt lists no kernels: the precision is not checked",)
    assert read_record(path).kernels == {}


@pytest.mark.parametrize("generation", fake_trt.GENERATIONS)
def test_the_inspector_is_given_the_optimal_batch(generation, make_artefact, monkeypatch):
    """Real inspectors show no formats of a dynamic batch without a context that has a shape."""

    def get_engine_information(inspector, layout):
        batch = inspector.execution_context._shape[0]
        tensor = {"Dimensions": [batch, 1, 8, 8], "Format/Datatype": HALF}
        return json.dumps(
            {"Layers": [{"Name": "c", "LayerType": "CaskConvolution", "Inputs": [tensor]}]}
        )

    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt.fake_tensorrt(generation))
    monkeypatch.setattr(fake_trt._Inspector, "get_engine_information", get_engine_information)
    options = BuildOptions(precision="fp32", batch=BatchRange(1, 4, 8))
    built = build_plan(load_tensorrt("tensorrt"), make_artefact().read_bytes(), options)
    assert built.kernels[0].inputs == (Edge("Half", 4 * 8 * 8 * 2),)
