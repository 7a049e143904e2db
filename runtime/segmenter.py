"""``Segmenter``: frames of any size in, class maps of the same size out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np

from runtime.artefact.card import CONFIDENCE, LABELS, LOGITS, ModelCard
from runtime.backend import open_backend
from runtime.backends.base import Backend
from runtime.errors import InvalidInput
from runtime.media.frames import batch_from_frames, check_frame, resize_map
from runtime.media.overlay import draw_overlay


class Segmenter(AbstractContextManager["Segmenter"]):
    """An open artefact that takes frames of any size.

    Example:
        >>> with Segmenter.open("model.onnx") as segmenter:
        ...     labels = segmenter.segment(frame)
        ...     image = segmenter.overlay(frame, labels)
        >>> labels.shape == frame.shape[:2], image.shape == frame.shape
        (True, True)
    """

    def __init__(self, backend: Backend) -> None:
        """Wrap an open backend; the segmenter owns it and closes it."""
        self.backend = backend

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        timing: bool = False,
    ) -> Segmenter:
        """Open an artefact; arguments and errors are those of ``runtime.backend.open_backend``."""
        return cls(open_backend(path, backend, precision=precision, threads=threads, timing=timing))

    @property
    def card(self) -> ModelCard:
        """The artefact's card: classes, palette, sizes."""
        return self.backend.card

    def segment(self, frames: np.ndarray, *, color: str = "rgb") -> np.ndarray:
        """Classify every pixel of one frame or of a batch.

        Args:
            frames: uint8, one frame (H, W, 3) or a batch (N, H, W, 3); any H and W.
            color: Channel order of the frames, ``rgb`` or ``bgr`` (OpenCV's).

        Returns:
            Indices of ``card.class_names``, uint8, fresh: (H, W) for a frame, (N, H, W) for a batch.

        Raises:
            InvalidInput: Frames of another dtype, rank or number of channels, or an unknown channel order.
        """
        return self._maps(frames, color)[0]

    def segment_with_confidence(
        self, frames: np.ndarray, *, color: str = "rgb"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classify every pixel and return the confidence of each.

        Args:
            frames: As for ``segment``.
            color: As for ``segment``.

        Returns:
            Labels as from ``segment``, and the top softmax probability x 255, uint8, of the same shape.

        Raises:
            InvalidInput: As for ``segment``, or the artefact has no confidence output.
        """
        labels, confidence = self._maps(frames, color)
        if confidence is None:
            raise InvalidInput(
                f"the artefact gives {', '.join(self.card.outputs)}, no confidence",
                hint="export it with --output labels+confidence",
            )
        return labels, confidence

    def overlay(
        self,
        frame: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        alpha: float = 0.5,
        legend: bool = True,
    ) -> np.ndarray:
        """Blend the class colours over a frame; see ``runtime.media.overlay.draw_overlay``.

        Args:
            frame: RGB, uint8 (H, W, 3).
            labels: uint8 (H, W) as from ``segment``; ``None`` computes them.
            alpha: Weight of the colours, 0 to 1.
            legend: True to name the visible classes.

        Returns:
            RGB, uint8 (H, W, 3), fresh.
        """
        labels = self.segment(frame) if labels is None else labels
        return draw_overlay(frame, labels, self.card, alpha=alpha, legend=legend)

    def close(self) -> None:
        """Close the backend; a second call does nothing."""
        self.backend.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _maps(self, frames: np.ndarray, color: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Get labels and, if the artefact has it, confidence."""
        if color not in ("rgb", "bgr"):
            raise InvalidInput(f"color must be 'rgb' or 'bgr', got {color!r}")
        is_batch = isinstance(frames, np.ndarray) and frames.ndim == 4
        items = list(frames) if is_batch else [frames]
        if not items:
            raise InvalidInput("a batch needs at least one frame, got none")
        for frame in items:
            check_frame(frame)
        size_hw, opt = items[0].shape[:2], self.card.batch.opt
        if color == "bgr":
            items = [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in items]
        parts = [self._infer(items[start : start + opt]) for start in range(0, len(items), opt)]
        maps = [
            [resize_map(item, size_hw) for array in arrays for item in array]
            for arrays in zip(*parts, strict=True)
        ]
        result = [np.stack(items) if is_batch else items[0] for items in maps]
        return result[0], result[1] if len(result) > 1 else None

    def _infer(self, frames: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Run up to one batch; the padding of a fixed batch is removed from the result."""
        batch = batch_from_frames(frames, self.card)
        results = zip(self.card.outputs, self.backend.infer(batch), strict=True)
        outputs = {name: array[: len(frames)] for name, array in results}
        if LOGITS in outputs:
            return (outputs[LOGITS].argmax(1).astype(np.uint8),)
        return tuple(outputs[name] for name in (LABELS, CONFIDENCE) if name in outputs)
