"""Inputs and outputs of an artefact as arrays: name, dtype and shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from runtime.artefact.card import CONFIDENCE, FRAMES, LABELS, LOGITS, TENSOR, ModelCard
from runtime.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a backend's input or output."""

    name: str
    """Tensor name in the artefact."""
    dtype: np.dtype
    """Element type."""
    shape: tuple[int | None, ...]
    """Axis sizes; ``None`` for a dynamic batch axis."""

    def check(self, array: np.ndarray) -> None:
        """Check an array.

        Raises:
            InvalidInput: Another dtype, rank or size; the message has both.
        """
        if array.dtype != self.dtype or not self.fits(array.shape):
            raise InvalidInput(
                f"input {self.name!r} must be {self.dtype} {shape_text(self.shape)}, "
                f"got {array.dtype} {array.shape}",
                hint="Segmenter resizes frames of any size; a backend does not",
            )

    def fits(self, shape: tuple[int | None, ...]) -> bool:
        """Compare a shape in rank and in sizes; a dynamic size fits every size."""
        return len(shape) == len(self.shape) and all(
            None in (want, got) or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one frame: all axes but the batch."""
        return tuple(size or 1 for size in self.shape[1:])

    @property
    def item_bytes(self) -> int:
        """Bytes of one frame."""
        return prod(self.item_shape) * self.dtype.itemsize


def tensor_specs(card: ModelCard) -> Iterator[TensorSpec]:
    """Yield the input and the outputs that a card describes; see ``ModelCard.input`` and ``.outputs``."""
    batch = card.batch.min if card.batch.is_fixed else None
    uint8, (height, width) = np.dtype(np.uint8), card.size_hw
    forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        FRAMES: (uint8, (height, width, 3)),
        TENSOR: (card.float_dtype, (3, height, width)),
        LABELS: (uint8, (height, width)),
        CONFIDENCE: (uint8, (height, width)),
        LOGITS: (card.float_dtype, (card.num_classes, height, width)),
    }
    for name in (card.input, *card.outputs):
        dtype, shape = forms[name]
        yield TensorSpec(name=name, dtype=dtype, shape=(batch, *shape))


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Format a shape: ``(N, 512, 1024, 3)``."""
    return f"({', '.join('N' if size is None else str(size) for size in shape)})"
