"""The model card: the description of an artefact that is stored in the artefact itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.artefact.card_values import value_problems
from runtime.artefact.onnx_file import read_metadata
from runtime.artefact.untrusted import parse_json
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
        """True if only one batch size is allowed."""
        return self.min == self.max

    def __str__(self) -> str:
        return ":".join(map(str, self))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """Inputs, outputs, classes and origin of an artefact.

    In ONNX it is the ``esnet_card`` entry of ``metadata_props``, as JSON.
    """

    name: str
    """Name of the weights, for display."""
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
    """Divisor of that difference per channel."""
    resize: str
    """Filter that resizes frames to ``size_hw``; labels are resized back by nearest neighbour."""
    label_set: str
    """Name of the label set."""
    class_names: tuple[str, ...]
    """One name per class, in the order of the labels."""
    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour per class, 0 to 255."""
    ignore_index: int
    """Label of pixels without a class in the training data."""
    precision: str
    """Precision of the graph: ``fp32``, ``fp16`` or ``int8``."""
    optimized_for: str
    """Engine that the graph is optimized for: ``tensorrt``, ``openvino`` or ``onnxruntime``."""
    label_values: Mapping[int, int] = field(default_factory=dict)
    """Value in the dataset's masks to class index; empty if masks hold class indices."""
    form: Mapping[str, Any] = field(default_factory=dict)
    """Form of the graph: upsampling, padded number of classes, opset, and the engines that it suits."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Weights: file name, sha256, family, and the training data stored in the file."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """INT8 only: scheme, calibration, layers that stay float, and the backends that passed the check."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """Difference to the checkpoint, measured at export; empty if unchecked."""
    created: Mapping[str, Any] = field(default_factory=dict)
    """Library versions and command of the export."""
    schema: int = SCHEMA
    """Version of this layout."""

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def classes(self) -> dict[str, Any]:
        """The label set, as the content of a label set file."""
        values = {"label_values": dict(self.label_values)} if self.label_values else {}
        return {
            "name": self.label_set,
            "names": list(self.class_names),
            "palette": [list(colour) for colour in self.palette],
            "ignore_index": self.ignore_index,
            **values,
        }

    @property
    def float_dtype(self) -> np.dtype:
        """Dtype of float inputs and outputs: float16 in an fp16 graph, else float32."""
        return np.dtype(np.float16 if self.precision == "fp16" else np.float32)

    def matches(self, backend: str) -> bool:
        """Check that a backend (key of ``runtime.backend.BACKENDS``) passed the check of an INT8 artefact.

        ONNX Runtime's GPU backend counts as its CPU backend. True without a check, and for backends that run
        no ONNX file.
        """
        passed = self.quantization.get("backends")
        return passed is None or backend not in _CHECKED or backend.removesuffix("-cuda") in passed

    def to_json(self) -> str:
        """Convert to one line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, origin: str = "card") -> ModelCard:
        """Parse a card; unknown fields are ignored.

        Args:
            text: JSON as from ``to_json``.
            origin: Name of the file, for error messages.

        Raises:
            ModelFileError: Not JSON, another schema, missing fields, or values of another type or range.
        """

        def error(problem: str, hint: str = _EXPORT) -> ModelFileError:
            return ModelFileError(f"{origin}: {problem}", hint=hint)

        try:
            fields = parse_json(text)
        except ValueError as cause:
            raise error(f"its model card is damaged: {cause}") from cause
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
            found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
            raise error(f"model card schema {found!r}, expected {SCHEMA}")
        entries = dataclasses.fields(cls)
        required = {e.name for e in entries if e.default_factory is dataclasses.MISSING}
        if missing := sorted(required - fields.keys()):
            raise error(f"its model card lacks {', '.join(missing)}")
        values = {e.name: _tuples(fields[e.name]) for e in entries if e.name in fields}
        for name, allowed in _VALUES.items():
            if (value := values[name]) not in allowed:
                raise error(
                    f"its model card says {name} {value!r}, this version knows {allowed}",
                    "pip install --upgrade esnet-deploy",
                )
        try:
            label_values = {int(k): v for k, v in values.get("label_values", {}).items()}
            batch = BatchRange(*values["batch"])
        except (AttributeError, TypeError, ValueError) as cause:
            raise error(f"its model card has damaged label_values or batch: {cause}") from cause
        card = cls(**{**values, "batch": batch, "label_values": label_values})
        if problem := next(value_problems(card), None):
            raise error(f"its model card has {problem}")
        return card

    @classmethod
    def from_file(cls, path: Path | str) -> ModelCard:
        """Read the card of an ONNX file, without an ONNX library.

        Raises:
            ModelFileError: Missing, empty, truncated, not ONNX, or without a valid card.

        Example:
            >>> card = ModelCard.from_file("model.onnx")
            >>> card.size_hw, str(card.batch), card.class_names[:2]
            ((64, 128), '1:1:8', ('sky', 'building'))
        """
        metadata = read_metadata(Path(path))
        if CARD_KEY not in metadata:
            raise ModelFileError(
                f"{path} is an ONNX file without a model card, so its colours, scale and classes are unknown",
                hint=_EXPORT,
            )
        return cls.from_json(metadata[CARD_KEY], origin=str(path))


# Known values of fields that would cause wrong results if an unknown value were ignored.
_VALUES: Mapping[str, tuple[object, ...]] = {
    "input": (FRAMES, TENSOR),
    "outputs": ((LABELS,), (LABELS, CONFIDENCE), (LOGITS,)),
    "color": ("RGB",),
    "resize": ("bilinear",),
    "precision": ("fp32", "fp16", "int8"),
}
_CHECKED = ("openvino", "onnxruntime", "onnxruntime-cuda")
_EXPORT = "make the artefact with: esnet-export to-onnx WEIGHTS -o model.onnx"


def _tuples(value: Any) -> Any:
    """Convert JSON lists to tuples, also nested ones."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
