"""Base class of all backends: input checks, specs from the card, context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from runtime.artefact.card import CONFIDENCE, FRAMES, LABELS, LOGITS, ModelCard
from runtime.errors import InvalidInput, ModelFileError

_Backend = TypeVar("_Backend", bound="Backend")


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
        """Refuse an array of another dtype, rank or size.

        Raises:
            InvalidInput: With the expected and the found dtype and shape.
        """
        if array.dtype != self.dtype or not self.fits(array.shape):
            raise InvalidInput(
                f"input {self.name!r} must be {self.dtype} {shape_text(self.shape)}, "
                f"got {array.dtype} {array.shape}",
                hint="Segmenter resizes frames of any size; a backend does not",
            )

    def fits(self, shape: tuple[int | None, ...]) -> bool:
        """Check that a shape has this rank and, where both are fixed, these sizes."""
        return len(shape) == len(self.shape) and all(
            None in (want, got) or want == got for want, got in zip(self.shape, shape, strict=True)
        )


class Backend(ABC):
    """An open artefact: host arrays in, host arrays out.

    Use it with ``with``; ``close`` may be called twice. Subclasses implement ``_infer`` and ``_release``.
    """

    name: str
    """Key of ``runtime.backend.BACKENDS``."""
    card: ModelCard
    """The artefact's card."""
    input: TensorSpec
    """Input of ``infer``."""
    outputs: tuple[TensorSpec, ...]
    """Outputs of ``infer``, in order."""
    precision: str
    """Precision that really runs: ``fp32``, ``fp16``, ``bf16`` or ``int8``."""
    device: str
    """Device name, for reports."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.input = input_spec(card)
        self.outputs = output_specs(card)
        self._is_open = True

    def infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch.

        Args:
            batch: As ``input`` says; the first axis within the card's batch range.

        Returns:
            One array per output, batch first; fresh arrays that the caller owns.

        Raises:
            InvalidInput: Wrong dtype, shape or batch size, or the backend is closed.
        """
        if not self._is_open:
            raise InvalidInput(f"the {self.name} backend is closed", hint="open the artefact again")
        self.input.check(batch)
        check_batch_size(self.card, batch.shape[0])
        return self._infer(np.ascontiguousarray(batch))

    def close(self) -> None:
        """Free all resources; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._release()

    def __enter__(self: _Backend) -> _Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]: ...

    @abstractmethod
    def _release(self) -> None: ...

    def _check_graph(self, path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
        """Refuse a graph whose inputs and outputs, by name, do not match the card."""
        for spec in (self.input, *self.outputs):
            if spec.name not in shapes or not spec.fits(shapes[spec.name]):
                found = ", ".join(f"{name} {shape_text(shape)}" for name, shape in shapes.items())
                raise ModelFileError(
                    f"{path} does not match its card: no {spec.name} {shape_text(spec.shape)} among {found}",
                    hint="the file was changed after its export; export it again",
                )


def input_spec(card: ModelCard) -> TensorSpec:
    """Derive the input from the card: uint8 (N, H, W, 3), or float (N, 3, H, W)."""
    height, width = card.size_hw
    shape = (height, width, 3) if card.input == FRAMES else (3, height, width)
    dtype = np.dtype(np.uint8) if card.input == FRAMES else card.float_dtype
    return TensorSpec(name=card.input, dtype=dtype, shape=(_batch_axis(card), *shape))


def output_specs(card: ModelCard) -> tuple[TensorSpec, ...]:
    """Derive the outputs from the card: uint8 (N, H, W) maps, or float (N, K, H, W) logits."""
    uint8, (height, width) = np.dtype(np.uint8), card.size_hw
    forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        LABELS: (uint8, (height, width)),
        CONFIDENCE: (uint8, (height, width)),
        LOGITS: (card.float_dtype, (card.num_classes, height, width)),
    }
    return tuple(
        TensorSpec(name=name, dtype=forms[name][0], shape=(_batch_axis(card), *forms[name][1]))
        for name in card.outputs
    )


def require_precision(
    asked: str | None, offered: tuple[str, ...], *, backend: str, device: str
) -> None:
    """Refuse a precision that a backend cannot run on this machine.

    Raises:
        InvalidInput: With the precisions it can run.
    """
    if asked is not None and asked not in offered:
        raise InvalidInput(
            f"{backend} cannot run {asked} on {device}, it offers {', '.join(offered)}",
            hint=f"--precision {offered[0]}, or omit it to use the model's precision",
        )


def check_batch_size(card: ModelCard, size: int) -> None:
    """Refuse a batch size outside the card's range.

    Raises:
        InvalidInput: With the range.
    """
    low, _, high = card.batch
    if not low <= size <= high:
        allowed = str(low) if low == high else f"{low} to {high}"
        raise InvalidInput(
            f"batch of {size} frames, the artefact takes {allowed}",
            hint=f"export with --batch {min(low, size)}:{size}:{max(high, size)}" if size else None,
        )


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Format a shape: ``(N, 512, 1024, 3)``."""
    return f"({', '.join('N' if size is None else str(size) for size in shape)})"


def _batch_axis(card: ModelCard) -> int | None:
    return card.batch.min if card.batch.is_fixed else None
