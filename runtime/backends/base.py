"""What the backends have in common: specs from the card, input checks, ``with``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from runtime.backend import TensorSpec, check_batch_size, shape_text
from runtime.card import CONFIDENCE, FRAMES, LABELS, LOGITS, ModelCard
from runtime.errors import InvalidInput, ModelFileError


class CardBackend(ABC):
    """A backend whose inputs and outputs are those of the card; subclasses fill ``_run`` and ``_release``."""

    name: str
    precision: str
    device: str

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.input = input_spec(card)
        self.outputs = output_specs(card)
        self._is_open = True

    def infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Check the batch, run it, and return fresh arrays (see ``Backend.infer``)."""
        if not self._is_open:
            raise InvalidInput(f"the {self.name} backend is closed", hint="open the artefact again")
        self.input.check(batch)
        check_batch_size(self.card, batch.shape[0])
        return self._run(np.ascontiguousarray(batch))

    def _check_graph(self, path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
        """Refuse a graph whose inputs and outputs, by name, are not what its card says."""
        for spec in (self.input, *self.outputs):
            if spec.name not in shapes or not spec.fits(shapes[spec.name]):
                found = ", ".join(f"{name} {shape_text(shape)}" for name, shape in shapes.items())
                raise ModelFileError(
                    f"{path} does not fit its card: no {spec.name} {shape_text(spec.shape)} among {found}",
                    hint="it was changed after its export; export it again",
                )

    @abstractmethod
    def _run(self, batch: np.ndarray) -> tuple[np.ndarray, ...]: ...

    @abstractmethod
    def _release(self) -> None: ...

    def close(self) -> None:
        """Free what the backend holds; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._release()

    def __enter__(self) -> CardBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def release_all(closers: list[Callable[[], None]]) -> None:
    """Call closers, the last first; all of them are called, and the first error is raised."""
    errors = []
    while closers:
        try:
            closers.pop()()
        except Exception as error:  # the rest must be freed too
            errors.append(error)
    if errors:
        raise errors[0]


def input_spec(card: ModelCard) -> TensorSpec:
    """Derive the input from the card: uint8 (N, H, W, 3), or float (N, 3, H, W)."""
    height, width = card.size_hw
    if card.input == FRAMES:
        return TensorSpec(
            name=FRAMES, dtype=np.dtype(np.uint8), shape=(_batch_axis(card), height, width, 3)
        )
    return TensorSpec(
        name=card.input, dtype=float_type(card), shape=(_batch_axis(card), 3, height, width)
    )


def output_specs(card: ModelCard) -> tuple[TensorSpec, ...]:
    """Derive the outputs from the card: uint8 (N, H, W) maps, or float (N, K, H, W) logits."""
    batch, (height, width) = _batch_axis(card), card.size_hw
    types = {LABELS: np.dtype(np.uint8), CONFIDENCE: np.dtype(np.uint8), LOGITS: float_type(card)}
    return tuple(
        TensorSpec(
            name=name,
            dtype=types[name],
            shape=(batch, card.num_classes, height, width)
            if name == LOGITS
            else (batch, height, width),
        )
        for name in card.outputs
    )


def float_type(card: ModelCard) -> np.dtype:
    """Get the float type at the artefact's edge: half in an fp16 graph."""
    return np.dtype(np.float16 if card.precision == "fp16" else np.float32)


def require_precision(
    asked: str | None, offered: tuple[str, ...], *, backend: str, device: str
) -> None:
    """Refuse a precision that a backend cannot run on this machine.

    Raises:
        InvalidInput: With what it can run.
    """
    if asked is not None and asked not in offered:
        raise InvalidInput(
            f"{backend} cannot run {asked} on {device}, it offers {', '.join(offered)}",
            hint=f"--precision {offered[0]}, or leave it away for the artefact's own",
        )


def _batch_axis(card: ModelCard) -> int | None:
    low, _, high = card.batch
    return low if low == high else None
