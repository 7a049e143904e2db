"""Advice for artefacts that run on another engine than the one their graph is optimized for."""

from __future__ import annotations

import shlex

from runtime.artefact.card import ModelCard
from runtime.artefact.untrusted import command_words

# Backends whose fastest graph form is known, as measured; that of tensorrt-rtx is TensorRT's.
_FORMS = ("openvino", "onnxruntime", "tensorrt")


def form_advice(card: ModelCard, backend_name: str) -> str | None:
    """Get one line with the command that exports an artefact again for the engine that runs it.

    Args:
        card: The artefact's card.
        backend_name: Key of ``runtime.backend.BACKENDS``.

    Returns:
        The line; ``None`` if the graph suits this engine, or no better form is known.
    """
    engine = backend_name.removesuffix("-rtx")
    if engine not in _FORMS or engine in (card.optimized_for, *card.form.get("suits", ())):
        return None
    command = shlex.join([*_export_command(card), "--optimize-for", engine])
    return f"the graph is optimized for {card.optimized_for}; for {backend_name}: {command}"


def quantization_advice(card: ModelCard, backend_name: str) -> str | None:
    """Get a warning if a backend failed the check of an INT8 artefact, else ``None``."""
    if card.matches(backend_name):
        return None
    passed = ", ".join(card.quantization["backends"]) or "none"
    return (
        f"{backend_name} did not pass the check of this INT8 artefact, {passed} did: "
        "its labels may be wrong; for CPUs, use esnet-export quantize --scheme cpu"
    )


def _export_command(card: ModelCard) -> list[str]:
    """Get the command that made the artefact, without engine and output file, or a general one."""
    command = card.created.get("command", "")
    words = iter(command_words(command, "esnet-export", "to-onnx"))
    kept = []
    for word in words:
        if word in ("--optimize-for", "--output-file", "-o"):
            next(words, None)
        elif not word.startswith(("--optimize-for=", "--output-file=", "-o")):
            kept.append(word)
    height, width = card.size_hw
    return kept or ["esnet-export", "to-onnx", card.name, "--size", f"{height}x{width}"]
