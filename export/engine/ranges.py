"""How large the activations of a graph become on given frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from export.errors import ExportError


def activation_peaks(
    model: onnx.ModelProto,
    batches: Iterable[np.ndarray],
    *,
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Measure the largest absolute value of every float tensor that a node makes.

    Args:
        model: A float32 graph with one input.
        batches: Inputs as the graph takes them.
        on_batch: Called with the number of batches done.

    Returns:
        Tensor name to its peak over all batches.

    Raises:
        ExportError: There are no batches, or a tensor is not finite already in float32.
    """
    probed, names = _with_probes(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probed.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    peaks = np.zeros(len(names))
    done = 0
    for batch in batches:
        values = session.run(
            [_probe(name) for name in names], {session.get_inputs()[0].name: batch}
        )
        peaks = np.maximum(peaks, np.array(values, float).ravel())
        done += 1
        on_batch(done)
    if not done:
        raise ExportError("no frames to measure activations on")
    if not np.isfinite(peaks).all():
        bad = names[int(np.flatnonzero(~np.isfinite(peaks))[0])]
        raise ExportError(
            f"tensor {bad!r} is not finite in float32 already",
            hint="check the weights: they hold NaN or Inf",
        )
    return dict(zip(names, peaks.tolist(), strict=True))


def _with_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Add an output to every float tensor: its largest absolute value, a scalar, so that no map is kept."""
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = {
        value.name
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    names = [name for node in model.graph.node for name in node.output if name in floats]
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for name in names:
        magnitude = f"{name}/magnitude"
        probed.graph.node.append(helper.make_node("Abs", [name], [magnitude]))
        probed.graph.node.append(
            helper.make_node("ReduceMax", [magnitude], [_probe(name)], keepdims=0)
        )
        probed.graph.output.append(
            helper.make_tensor_value_info(_probe(name), TensorProto.FLOAT, [])
        )
    return probed, names


def _probe(name: str) -> str:
    return f"{name}/peak"
