"""ESNet from checkpoint to deployment (arXiv 1906.09826): every public name, imported on first use.

``import esnet`` loads no library; each name loads what it needs. ``Segmenter`` needs neither torch nor onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.accuracy.evaluate import evaluate as evaluate
    from benchmarks.accuracy.evaluate import open_predictor as open_predictor
    from esnet.checkpoint import load_checkpoint as load_checkpoint
    from esnet.data.datasets import open_split as open_split
    from export.engine.build import build_engine as build_engine
    from export.engine.trt_builder import BuildOptions as BuildOptions
    from export.plan import ExportPlan as ExportPlan
    from export.quantization.quantize import QuantizeOptions as QuantizeOptions
    from export.quantization.quantize import quantize as quantize
    from export.to_onnx import export_onnx as export_onnx
    from runtime.artefact.card import ModelCard as ModelCard
    from runtime.backend import open_backend as open_backend
    from runtime.segmenter import Segmenter as Segmenter

_MODULES = {
    "BuildOptions": "export.engine.trt_builder",
    "ExportPlan": "export.plan",
    "ModelCard": "runtime.artefact.card",
    "QuantizeOptions": "export.quantization.quantize",
    "Segmenter": "runtime.segmenter",
    "build_engine": "export.engine.build",
    "evaluate": "benchmarks.accuracy.evaluate",
    "export_onnx": "export.to_onnx",
    "load_checkpoint": "esnet.checkpoint",
    "open_backend": "runtime.backend",
    "open_predictor": "benchmarks.accuracy.evaluate",
    "open_split": "esnet.data.datasets",
    "quantize": "export.quantization.quantize",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'esnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
