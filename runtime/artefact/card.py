"""The model card: all that a runtime must know about an artefact, carried by the artefact itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.artefact.onnx_file import read_metadata
from runtime.errors import ModelFileError

CARD_KEY = "esnet_card"
SCHEMA = 1

FRAMES, TENSOR = "frames", "tensor"
LABELS, CONFIDENCE, LOGITS = "labels", "confidence", "logits"


class BatchRange(NamedTuple):
    """Batch sizes of an artefact or engine, ``1 <= min <= opt <= max``."""

    min: int
    """Smallest batch size."""
    opt: int
    """Batch size that engines are optimized for."""
    max: int
    """Largest batch size."""

    @property
    def is_fixed(self) -> bool:
        """Whether only one batch size is allowed."""
        return self.min == self.max

    def __str__(self) -> str:
        return ":".join(map(str, self))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What an artefact takes, gives, and was made from.

    In ONNX it is the ``esnet_card`` entry of ``metadata_props``, as JSON.
    """

    name: str
    """Name of the weights, for people."""
    size_hw: tuple[int, int]
    """Input height and width in pixels."""
    batch: BatchRange
    """Batch sizes."""
    input: str
    """``frames``: uint8 (N, H, W, 3); ``tensor``: normalised float (N, 3, H, W)."""
    outputs: tuple[str, ...]
    """``labels``: uint8 (N, H, W); ``confidence``: uint8 (N, H, W), top softmax probability x 255;
    ``logits``: float (N, K, H, W)."""
    color: str
    """Channel order of the input, ``RGB``."""
    mean: tuple[float, float, float]
    """Subtracted from input / 255 per channel: by the graph for ``frames``, by the caller for ``tensor``."""
    std: tuple[float, float, float]
    """What the difference is divided by."""
    resize: str
    """Filter that brings other frames to ``size_hw``; labels go back by nearest."""
    label_set: str
    """Name of the label set."""
    class_names: tuple[str, ...]
    """One name a class, in the order of the labels."""
    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour a class."""
    ignore_index: int
    """Label value of the dataset that counts as no class."""
    precision: str
    """``fp32``, ``fp16`` or ``int8``: the type of the weights and arithmetic in the graph."""
    optimized_for: str
    """Engine whose form the graph has: ``tensorrt``, ``openvino`` or ``onnxruntime``."""
    form: Mapping[str, Any] = field(default_factory=dict)
    """The graph's form: how it upsamples, how many classes its head is padded to, opset, and the engines that
    it suits."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Weights: file name, sha256, family, and what the file says of its training."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """Of an INT8 artefact: scheme, calibration, what stays float, and which backends execute it rightly."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """How far the artefact was from the checkpoint when it was exported; empty if unchecked."""
    created: Mapping[str, Any] = field(default_factory=dict)
    """Versions and command that made it."""
    schema: int = SCHEMA
    """Version of this layout."""

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def float_dtype(self) -> np.dtype:
        """Dtype of float inputs and outputs: float16 in an fp16 graph, else float32."""
        return np.dtype(np.float16 if self.precision == "fp16" else np.float32)

    def to_json(self) -> str:
        """Write the card as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, origin: str = "card") -> ModelCard:
        """Read a card back.

        Raises:
            ModelFileError: Not JSON, a newer schema, fields missing, or values that are not known.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(
                f"{origin}: its model card is damaged: {error}", hint=_EXPORT
            ) from error
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
            found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
            raise ModelFileError(
                f"{origin}: model card schema {found!r}, expected {SCHEMA}", hint=_EXPORT
            )
        known = {entry.name for entry in dataclasses.fields(cls)}
        required = {
            e.name for e in dataclasses.fields(cls) if e.default_factory is dataclasses.MISSING
        }
        required.discard("schema")
        if missing := sorted(required - fields.keys()):
            raise ModelFileError(
                f"{origin}: its model card lacks {', '.join(missing)}", hint=_EXPORT
            )
        values = {key: _tuples(value) for key, value in fields.items() if key in known}
        card = cls(**{**values, "batch": BatchRange(*values["batch"])})
        for name, allowed in _VALUES.items():
            if (value := getattr(card, name)) not in allowed:
                raise ModelFileError(
                    f"{origin}: its model card says {name} {value!r}, this version knows {allowed}",
                    hint="pip install --upgrade esnet-deploy",
                )
        return card

    @classmethod
    def from_file(cls, path: Path) -> ModelCard:
        """Read the card of an ONNX file, without an ONNX library.

        Raises:
            ModelFileError: Missing, empty, truncated or not ONNX; or ONNX without our card.
        """
        metadata = read_metadata(path)
        if CARD_KEY not in metadata:
            raise ModelFileError(
                f"{path} is an ONNX file without a model card, so its colours, scale and classes are unknown",
                hint=_EXPORT,
            )
        return cls.from_json(metadata[CARD_KEY], origin=str(path))


# What the card may say of things that would go wrong in silence if they were ignored.
_VALUES: Mapping[str, tuple[object, ...]] = {
    "input": (FRAMES, TENSOR),
    "outputs": ((LABELS,), (LABELS, CONFIDENCE), (LOGITS,)),
    "color": ("RGB",),
    "resize": ("bilinear",),
    "precision": ("fp32", "fp16", "int8"),
}
_EXPORT = "make the artefact with: esnet-export to-onnx WEIGHTS -o model.onnx"


def _tuples(value: Any) -> Any:
    """JSON has lists where the card has tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
