"""Which block of the network suffers most from 8 bits, measured one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from export.errors import ExportError
from export.graph.qdq import Range, Scheme, insert_qdq
from export.quantization.unoptimized import run_unoptimized
from runtime.files import atomic_path


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
    truth = run_unoptimized(model, batches)
    losses = {}
    for done, block in enumerate(blocks, start=1):
        others = [name for name in convolutions if _block(name) != block]
        labels = run_unoptimized(insert_qdq(model, ranges, scheme, keep=others), batches)
        losses[block] = float(
            np.mean([np.mean(a != b) for a, b in zip(labels, truth, strict=True)])
        )
        on_block(done, len(blocks))
    return dict(sorted(losses.items(), key=lambda item: -item[1]))


def draw_sensitivity(
    shares: Mapping[str, float], path: Path, *, restored: Collection[str] = ()
) -> None:
    """Draw what each block alone costs, the worst on top; blocks that went back to float are in grey.

    Raises:
        ExportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExportError(
            "--sensitivity draws with matplotlib, which is not installed",
            hint="pip install matplotlib",
        ) from error
    figure = Figure(figsize=(7, 0.6 + 0.28 * len(shares)), layout="constrained")
    axis = figure.add_subplot()
    names = list(shares)[::-1]
    colours = ["#9aa0a6" if name in restored else "#1f77b4" for name in names]
    bars = axis.barh(names, [100 * shares[name] for name in names], color=colours)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.set_xlabel("labels that change when this block alone is in 8 bits, %")
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _block(name: str) -> str:
    """Get the block of a convolution: encoder.layers.3.conv is in encoder.layers.3, a head is one itself."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[1:2] == ["layers"] else ".".join(parts[:2])
