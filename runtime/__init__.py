"""Run an exported ESNet: frames in, class maps out. Needs neither torch nor onnx.

``Segmenter`` is the main class; ``open_backend`` and ``ModelCard`` are the layer below. Names are imported on
first use, so that ``import runtime`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.artefact.card import ModelCard as ModelCard
    from runtime.backend import open_backend as open_backend
    from runtime.segmenter import Segmenter as Segmenter

_MODULES = {
    "ModelCard": "runtime.artefact.card",
    "Segmenter": "runtime.segmenter",
    "open_backend": "runtime.backend",
}

__all__ = ["ModelCard", "Segmenter", "open_backend"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
