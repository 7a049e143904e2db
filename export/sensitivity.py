"""Which block of the network suffers most from 8 bits, measured one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort

from export.graph.qdq import Range, Scheme, insert_qdq


def blocks_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Name the blocks that hold convolutions, by module path, in graph order."""
    names = [node.name for node in model.graph.node if "Conv" in node.op_type]
    return tuple(dict.fromkeys(_block(name) for name in names))


def block_sensitivity(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    batches: Sequence[np.ndarray],
    *,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Quantize one block alone, for each block, and count the labels that change.

    Args:
        model: The float graph.
        ranges: Of its activations.
        scheme: How activations are written.
        batches: Inputs as the graph takes them; a few tell enough.
        on_block: Called with (done, total).

    Returns:
        Block to the share of labels that differ from the float graph's, 0 to 1, the most sensitive first.
    """
    blocks = blocks_of(model)
    convolutions = [node.name for node in model.graph.node if "Conv" in node.op_type]
    truth = _labels(model, batches)
    losses = {}
    for done, block in enumerate(blocks, start=1):
        others = [name for name in convolutions if _block(name) != block]
        labels = _labels(insert_qdq(model, ranges, scheme, keep=others), batches)
        losses[block] = float(
            np.mean([np.mean(a != b) for a, b in zip(labels, truth, strict=True)])
        )
        on_block(done, len(blocks))
    return dict(sorted(losses.items(), key=lambda item: -item[1]))


def _block(name: str) -> str:
    """Get the block of a convolution: encoder.layers.3.conv is in encoder.layers.3, a head is one itself."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[1:2] == ["layers"] else ".".join(parts[:2])


def _labels(model: onnx.ModelProto, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # No fusion may hide what the graph says.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return [session.run(None, {name: batch})[0] for batch in batches]
