"""The precision contract: types that an engine computes in, compared with those that were requested."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx

from export.engine.kernels import UNKNOWN, Kernel, convolution_types, typed_convolutions
from export.errors import PrecisionError
from export.graph.editor import dims_of, macs_of

_CONVOLUTION_TYPES = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}
_MOST_NAMES = 4


def require_types(kernels: Sequence[Kernel], precision: str, *, num_fp32: int) -> None:
    """Compare the compute types of the convolutions with the requested precision.

    Convolutions of unknown type are not counted.

    Args:
        kernels: Compiled kernels; an empty list passes.
        precision: ``fp32``, ``fp16`` or ``int8``.
        num_fp32: Number of convolutions that may compute in fp32; for INT8 at least one must not.

    Raises:
        PrecisionError: Too many convolutions compute in another type.
    """
    types = convolution_types(kernels)
    types.pop(UNKNOWN, None)
    total, right = sum(types.values()), types.get(_CONVOLUTION_TYPES[precision], 0)
    # Post-training quantization keeps the first and the last layer in float.
    allowed = max(num_fp32, 4 if precision == "int8" else 0)
    is_wrong = total - right > allowed or (precision == "int8" and right == 0)
    if total and is_wrong:
        found = ", ".join(f"{count} in {name}" for name, count in types.items())
        raise PrecisionError(
            f"{precision} was requested, but of {total} convolutions {found}; nothing was written",
            hint=f"this GPU or TensorRT has no {precision} kernels for them; use another precision",
        )


def convolution_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Count the multiply-accumulates of each convolution of a graph, by its node's name, for one frame.

    Returns:
        The counts; empty if a shape cannot be inferred.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [size if isinstance(size, int) else 1 for size in dims_of(value)]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    try:
        return {node.name: macs for node in graph.node if (macs := macs_of(node, shapes))}
    except KeyError:
        return {}


def mac_shares(kernels: Sequence[Kernel], macs: Mapping[str, int]) -> dict[str, float]:
    """Compute the share of the multiply-accumulates in each compute type, the largest first.

    Args:
        kernels: Compiled kernels, which name their graph nodes.
        macs: As from ``convolution_macs``.

    Returns:
        Type to share, 0 to 1, ``?`` for nodes that no kernel names; empty if all are unknown.
    """
    types = _type_of_each_node(kernels, macs)
    if not types:
        return {}
    shares: Counter[str] = Counter()
    for name, count in macs.items():
        shares[types.get(name, UNKNOWN)] += count
    return {name: count / sum(macs.values()) for name, count in shares.most_common()}


def fallback_note(kernels: Sequence[Kernel], macs: Mapping[str, int], precision: str) -> str | None:
    """Name the largest convolutions that compute in another type than requested; ``None`` without any."""
    types, wanted = _type_of_each_node(kernels, macs), _CONVOLUTION_TYPES[precision]
    others = [name for name, found in types.items() if found not in (wanted, UNKNOWN)]
    if not others:
        return None
    total = sum(macs.values())
    by_size = sorted(others, key=lambda name: -macs[name])
    names = ", ".join(
        f"{name} {types[name]} {100 * macs[name] / total:.1f} %" for name in by_size[:_MOST_NAMES]
    )
    rest = f" and {len(others) - _MOST_NAMES} more" if len(others) > _MOST_NAMES else ""
    share = sum(macs[name] for name in others) / total
    return (
        f"{100 * share:.1f} % of the multiply-accumulates are not in {precision}, as TensorRT has no such "
        f"kernel or a faster one: {names}{rest}"
    )


def _type_of_each_node(kernels: Sequence[Kernel], macs: Mapping[str, int]) -> dict[str, str]:
    """Get the compute type of the convolutions that kernels name; the first kernel of a node counts."""
    types: dict[str, str] = {}
    for kernel, name in typed_convolutions(kernels):
        words = re.split(r"\.{3}|[^\w./:-]+", f"{kernel.name} {kernel.metadata}")
        for node in macs.keys() & set(words):
            types.setdefault(node, name)
    return types
