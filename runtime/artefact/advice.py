"""What to tell whoever runs an artefact on another engine than the one whose form its graph has."""

from __future__ import annotations

import shlex

from runtime.artefact.card import ModelCard

# Backend -> the engine whose form it likes, where that was measured.
_FORM_OF = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
}


_EXECUTES_QDQ = ("openvino", "onnxruntime", "onnxruntime-cuda")


def form_advice(card: ModelCard, backend_name: str) -> str | None:
    """Say in one line how to export an artefact again for the engine that runs it.

    Args:
        card: The artefact's.
        backend_name: Key of ``runtime.backend.BACKENDS``.

    Returns:
        The line, with the command; ``None`` where the form is the engine's own, or none is known.
    """
    engine = _FORM_OF.get(backend_name)
    if engine is None or engine in (card.optimized_for, *card.form.get("suits", ())):
        return None
    command = shlex.join([*_export_command(card), "--optimize-for", engine])
    return f"the graph has the form that suits {card.optimized_for}; for {backend_name}: {command}"


def quantization_advice(card: ModelCard, backend_name: str) -> str | None:
    """Warn of a backend that did not execute an INT8 artefact rightly; ``None`` where all is well."""
    passed = card.quantization.get("backends")
    if passed is None or backend_name in passed or backend_name not in _EXECUTES_QDQ:
        return None
    return (
        f"{backend_name} did not pass the check of this INT8 artefact, {', '.join(passed) or 'none'} did: "
        "its labels may be wrong; --scheme cpu of esnet-export quantize suits CPUs"
    )


def _export_command(card: ModelCard) -> list[str]:
    """Take the command that made the artefact, less its engine and output file, or make a general one."""
    try:
        words = iter(shlex.split(card.created.get("command", "")))
    except ValueError:  # a path with a lone quote, written down unquoted
        words = iter(())
    kept = []
    for word in words:
        if word in ("--optimize-for", "--output-file", "-o"):
            next(words, None)
        elif not word.startswith(("--optimize-for=", "--output-file=", "-o")):
            kept.append(word)
    height, width = card.size_hw
    return kept or ["esnet-export", "to-onnx", card.name, "--size", f"{height}x{width}"]
