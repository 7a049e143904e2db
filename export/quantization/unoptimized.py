"""What a graph says, executed to the letter: the reference that backends are held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort


def run_unoptimized(model: onnx.ModelProto, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a graph in ONNX Runtime without any optimisation, and get its first output for each batch.

    Nothing is fused: where the graph quantizes, values are rounded, and all arithmetic is in float.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return [session.run(None, {name: batch})[0] for batch in batches]
