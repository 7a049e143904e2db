"""Sensitivity of each block of the network to 8 bits, measured one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx

from esnet.metrics import label_agreement
from export.graph.qdq import Range, Scheme, insert_qdq
from export.quantization.check import run_unoptimized
from runtime.files import atomic_path, require_outputs


def block_sensitivity(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    batches: Sequence[np.ndarray],
    on_frame: Callable[[str, int, int], None],
) -> dict[str, float]:
    """Quantize each block alone and measure the share of labels that change.

    Args:
        model: Float graph.
        ranges: Ranges of its activations.
        scheme: Format of 8-bit activations.
        batches: Inputs of the graph; a few are enough.
        on_frame: Called with a description, the number of blocks done and the total.

    Returns:
        Block, by module path, to the share of labels that differ from the float graph's, 0 to 1; the most
        sensitive first.
    """
    convolutions = [node.name for node in model.graph.node if "Conv" in node.op_type]
    blocks = list(dict.fromkeys(map(_block_of, convolutions)))
    reference = run_unoptimized(model, batches)
    losses = {}
    for done, block in enumerate(blocks, start=1):
        others = [name for name in convolutions if _block_of(name) != block]
        labels = run_unoptimized(insert_qdq(model, ranges, scheme, keep=others), batches)
        losses[block] = 1 - label_agreement(labels, reference)
        on_frame("measuring blocks", done, len(blocks))
    return dict(sorted(losses.items(), key=lambda item: -item[1]))


def require_drawing(path: Path, source: Path) -> None:
    """Check before any work that ``draw_sensitivity`` can write ``path``, which must not be ``source``.

    Raises:
        InvalidInput: The path cannot be written, or is neither PNG nor SVG.
        ModuleNotFoundError: matplotlib is not installed.
    """
    require_outputs(path, source=source, suffixes=(".png", ".svg"))
    import_module("matplotlib")


def draw_sensitivity(shares: Mapping[str, float], path: Path, restored: Collection[str]) -> None:
    """Draw the sensitivity of each block as bars, the highest on top; restored blocks are grey."""
    from matplotlib.figure import Figure

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


def _block_of(name: str) -> str:
    """Get the block of a convolution: encoder.layers.3.conv is in encoder.layers.3, a head is its own."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[1:2] == ["layers"] else ".".join(parts[:2])
