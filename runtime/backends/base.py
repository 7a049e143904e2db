"""Base class of all backends: input checks, specs from the card, context manager."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.artefact.card import CONFIDENCE, FRAMES, LABELS, LOGITS, TENSOR, ModelCard
from runtime.errors import InvalidInput, ModelFileError


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
                f"input {self.name!r} must be {self.dtype} {_shape_text(self.shape)}, "
                f"got {array.dtype} {array.shape}",
                hint="Segmenter resizes frames of any size; a backend does not",
            )

    def fits(self, shape: tuple[int | None, ...]) -> bool:
        """Compare a shape in rank and in sizes; a dynamic size fits every size."""
        return len(shape) == len(self.shape) and all(
            None in (want, got) or want == got for want, got in zip(self.shape, shape, strict=True)
        )


class Backend(AbstractContextManager["Backend"]):
    """An open artefact: host arrays in, host arrays out.

    Use it with ``with``. Subclasses implement ``_open``, ``_infer`` and ``_release``.
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
    """Precision that runs: ``fp32``, ``fp16``, ``bf16`` or ``int8``."""
    device: str
    """Device name, for reports."""

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        *,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open an artefact.

        Args:
            path: The artefact.
            card: Its card.
            precision: Precision to compute in; ``None`` takes the card's, or fp32 if the device lacks it.
            threads: CPU threads; ``None`` leaves the number to the library. GPU backends ignore it.

        Raises:
            InvalidInput: The backend cannot run this precision here.
            BackendUnavailable: A library, the driver or the GPU is missing.
            ModelFileError: The library cannot open the artefact.
        """
        self.card = card
        self.input, *outputs = _tensor_specs(card)
        self.outputs = tuple(outputs)
        self._open(path, precision, threads)
        self._is_open = True

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about how the artefact runs; they may grow while batches run."""
        return ()

    def infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch.

        Args:
            batch: Dtype and shape of ``input``; the first axis within the card's batch range.

        Returns:
            One fresh array per output, with the dtype and shape of ``outputs``.

        Raises:
            InvalidInput: Wrong dtype, shape or batch size, or the backend is closed.
        """
        if not self._is_open:
            raise InvalidInput(f"the {self.name} backend is closed", hint="open the artefact again")
        self.input.check(batch)
        self._check_size(batch.shape[0])
        return self._infer(np.ascontiguousarray(batch))

    def close(self) -> None:
        """Free all resources; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._release()

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _open(self, path: Path, precision: str | None, threads: int | None) -> None: ...
    @abstractmethod
    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]: ...
    @abstractmethod
    def _release(self) -> None: ...

    def _check_size(self, size: int) -> None:
        """Refuse a number of frames outside the card's batch range."""
        low, _, high = self.card.batch
        if not low <= size <= high:
            allowed = str(low) if low == high else f"{low} to {high}"
            hint = f"export with --batch {min(low, size)}:{size}:{max(high, size)}"
            raise InvalidInput(
                f"batch of {size} frames, the artefact takes {allowed}",
                hint=hint if size > 0 else None,
            )

    def _require_precision(self, asked: str | None, offered: Sequence[str], *, on: str) -> None:
        """Refuse a requested precision that is not offered; ``on`` names the device in the message."""
        if asked is not None and asked not in offered:
            raise InvalidInput(
                f"{self.name} cannot run {asked} on {on}, it offers {', '.join(offered)}",
                hint=f"--precision {offered[0]}, or omit it to use the model's precision",
            )

    def _check_graph(self, path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
        """Check the shapes of a graph's inputs and outputs, by name, against the card."""
        for spec in (self.input, *self.outputs):
            if spec.name not in shapes or not spec.fits(shapes[spec.name]):
                found = ", ".join(f"{name} {_shape_text(shape)}" for name, shape in shapes.items())
                raise ModelFileError(
                    f"{path} does not match its card: no {spec.name} {_shape_text(spec.shape)} among {found}",
                    hint="the file was changed after its export: export it again",
                )


def _tensor_specs(card: ModelCard) -> Iterator[TensorSpec]:
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


def _shape_text(shape: tuple[int | None, ...]) -> str:
    """Format a shape: ``(N, 512, 1024, 3)``."""
    return f"({', '.join('N' if size is None else str(size) for size in shape)})"
