"""What to tell whoever runs an artefact on another engine than the one whose form its graph has."""

from __future__ import annotations

import shlex

from runtime.card import ModelCard

# Backend -> the engine whose form it likes, where that was measured.
_FORM_OF = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
}


def form_advice(card: ModelCard, backend_name: str) -> str | None:
    """Say in one line how to export an artefact again for the engine that runs it.

    Args:
        card: The artefact's.
        backend_name: Key of ``runtime.backend.BACKENDS``.

    Returns:
        The line, with the command; ``None`` where the form is the engine's own, or the best is not known.
    """
    engine = _FORM_OF.get(backend_name)
    if engine is None or engine in (card.target, *card.form.get("suits", ())):
        return None
    command = shlex.join([*_export_command(card), "--for", engine])
    return f"the graph has the form that suits {card.target}; for {backend_name}: {command}"


def _export_command(card: ModelCard) -> list[str]:
    """Take the command that made the artefact, less its engine and output file, or make a general one."""
    try:
        words = iter(shlex.split(card.created.get("command", "")))
    except ValueError:  # a path with a lone quote, written down unquoted
        words = iter(())
    kept = []
    for word in words:
        if word in ("--for", "--output-file", "-o"):
            next(words, None)
        elif not word.startswith(("--for=", "--output-file=", "-o")):
            kept.append(word)
    height, width = card.size_hw
    return kept or ["esnet-export", "to-onnx", card.name, "--size", f"{height}x{width}"]
