"""Write the probes of ``runtime.trials``: ESNet at 128x256 in fp32 and int8, with constant weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import runtime
from esnet.families import FAMILIES
from esnet.labels import CAMVID
from esnet.model import ESNet
from export.graph.pool import pool_bytes
from export.graph.qdq import CPU_SCHEME, insert_qdq, quantizable_tensors
from export.graph.scores import quantize_scores
from export.metadata import card_from_plan, with_card
from export.plan import ExportPlan, graph_from_network
from runtime.artefact.card import BatchRange
from runtime.files import atomic_path

_RANGE = (0.0, 5.0)
_SMALL = 64  # values


def write_probes(folder: Path) -> None:
    """Write ``probe_fp32.onnx`` and ``probe_int8.onnx``."""
    plan = ExportPlan(size_hw=(128, 256), batch=BatchRange(1, 1, 1), optimized_for="openvino")
    network = ESNet(FAMILIES["authors"].config(11)).eval()
    model = graph_from_network(network, plan)
    card = card_from_plan(plan, CAMVID, name="probe")
    for precision, graph in (("fp32", model), ("int8", _quantize(model))):
        _fill_weights(graph)
        path = folder / f"probe_{precision}.onnx"
        with atomic_path(path) as temporary:
            onnx.save(with_card(graph, replace(card, precision=precision)), temporary)
        print(f"{path}: {path.stat().st_size} bytes")


def _quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize for CPUs as ``esnet-export quantize`` does, with one range for all tensors."""
    model = pool_bytes(model)
    ranges = dict.fromkeys(quantizable_tensors(model), _RANGE)
    return quantize_scores(insert_qdq(model, ranges, CPU_SCHEME), _RANGE)


def _fill_weights(model: onnx.ModelProto) -> None:
    """Replace large initializers by nodes that fill their shape with one value; engines fold these."""
    for tensor in [t for t in model.graph.initializer if np.prod(t.dims) > _SMALL]:
        array = numpy_helper.to_array(tensor)
        shape = numpy_helper.from_array(np.array(array.shape), f"{tensor.name}/shape")
        value = numpy_helper.from_array(array.ravel()[:1])
        fill = helper.make_node("ConstantOfShape", [shape.name], [tensor.name], value=value)
        model.graph.node.insert(0, fill)
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(shape)


if __name__ == "__main__":
    write_probes(Path(runtime.__file__).parent)
