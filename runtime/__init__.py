"""Run a deployed ESNet: open an artefact, turn frames into class maps. Needs neither torch nor onnx.

``Segmenter`` is the face people use; ``open_backend`` and ``ModelCard`` lie beneath it. The names are loaded
when they are first used, so that ``import runtime`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.artefact.card import ModelCard as ModelCard
    from runtime.backend import open_backend as open_backend
    from runtime.segmenter import Segmenter as Segmenter

_HOMES = {
    "ModelCard": "runtime.artefact.card",
    "Segmenter": "runtime.segmenter",
    "open_backend": "runtime.backend",
}

__all__ = ["ModelCard", "Segmenter", "open_backend"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
