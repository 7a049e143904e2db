"""``Outputs``: all that is made of the results of a source, drawn in one thread and written in another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.artefact.card import ModelCard
from runtime.errors import InvalidInput
from runtime.media.overlay import class_areas
from runtime.media.sources import FrameSource
from runtime.output.drawing import Drawing
from runtime.output.images import image_path
from runtime.output.records import record_sink
from runtime.output.sinks import is_folder, open_sink
from runtime.output.window import window_sink
from runtime.segmenter import Result

_LOSSY_SUFFIXES = (".mp4", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What to write."""

    path: Path | None = None
    """Output for ``open_sink``; ``None`` for a window or records alone."""
    records_path: Path | None = None
    """File for one JSON record for each frame, ``-`` for stdout; ``None`` for none."""
    show: bool = False
    """True to show the frames in a window; in the main thread."""
    drawing: Drawing = field(default_factory=Drawing)
    """How the frames are drawn."""
    overwrite: bool = False
    """True to replace files that ``esnet-segment`` did not write."""
    resume: bool = False
    """True to leave out the frames whose image is in the output folder, and to append records."""

    def __post_init__(self) -> None:
        if self.path is None and self.records_path is None and not self.show:
            raise InvalidInput("there is no output", hint="give --output, --show or --jsonl")
        if self.path is not None and self.path == self.records_path:
            raise InvalidInput(f"images and records cannot both be {self.path}")
        if self.resume and (self.path is None or not is_folder(self.path)):
            raise InvalidInput("only a folder of images can be resumed", hint="omit --resume")
        suffix = self.path.suffix.lower() if self.path else ""
        if self.drawing.kind == "labels" and suffix in _LOSSY_SUFFIXES:
            raise InvalidInput(
                f"class indices would not survive {suffix} compression",
                hint="write them to .png or to a folder",
            )

    def has(self, name: str) -> bool:
        """Check that the image of a frame is in the output folder."""
        return self.path is not None and image_path(self.path, name).exists()

    @contextmanager
    def open(
        self, card: ModelCard, source: FrameSource, on_close: Callable[[], object]
    ) -> Iterator[OpenOutputs]:
        """Open all outputs; files are complete when the block ends.

        Args:
            card: Card of the artefact.
            source: Source of the frames.
            on_close: Called when the user closes the window.

        Raises:
            InvalidInput: As from ``Drawing.for_card``, ``open_sink``, ``record_sink`` and ``window_sink``.
        """
        draw = self.drawing.for_card(card) if self.path or self.show else None
        is_map = self.drawing.kind == "labels"
        draw_shown = self.drawing.for_window(card) if self.show and is_map else draw
        with ExitStack() as stack:
            opened = OpenOutputs(card, source, draw, draw_shown)
            if self.path is not None:
                sink = open_sink(self.path, source, overwrite=self.overwrite)
                opened.write_image = stack.enter_context(sink)
            if self.records_path is not None:
                records = record_sink(
                    self.records_path,
                    source=source.path,
                    overwrite=self.overwrite,
                    append=self.resume,
                )
                opened.write_record = stack.enter_context(records)
            if self.show:
                opened.show = stack.enter_context(window_sink(source.name, on_close))
            yield opened


class Drawn(NamedTuple):
    """A result with all that is written of it."""

    result: Result
    image: np.ndarray
    """Image for the file."""
    shown: np.ndarray
    """Image for the window."""
    areas: np.ndarray | None
    """Share of each class, if there are records."""
    stages: dict[str, float]
    """Duration of each stage so far, ms."""


class OpenOutputs:
    """Open outputs."""

    write_image: Callable[[np.ndarray, str, float], None] | None = None
    write_record: Callable[[dict[str, Any]], None] | None = None
    show: Callable[[np.ndarray | None], None] | None = None

    def __init__(
        self,
        card: ModelCard,
        source: FrameSource,
        draw: Callable[[Result], np.ndarray] | None,
        draw_shown: Callable[[Result], np.ndarray] | None,
    ) -> None:
        self._card, self._source = card, source
        self._draw, self._draw_shown = draw, draw_shown

    def draw(self, item: tuple[Result, dict[str, float]]) -> Drawn:
        """Draw a result and its stages; in any thread."""
        result, stages = item
        started = time.perf_counter()
        image = shown = self._draw(result) if self._draw else result.labels
        if self._draw_shown and self._draw_shown is not self._draw:
            shown = self._draw_shown(result)
        areas = class_areas(result.labels, self._card) if self.write_record else None
        stages["draw"] = 1e3 * (time.perf_counter() - started)
        return Drawn(result, image, shown, areas, stages)

    def wait(self) -> None:
        """Keep the window alive while there is no result; in the main thread."""
        if self.show:
            self.show(None)

    def write(self, drawn: Drawn) -> None:
        """Write a drawn result; in order, and in the main thread."""
        result, image, shown, areas, stages = drawn
        started = time.perf_counter()
        if self.write_image:
            self.write_image(image, result.name, result.timestamp)
        if self.show:
            self.show(shown)
        stages["write"] = 1e3 * (time.perf_counter() - started)
        if self.write_record and areas is not None:
            self.write_record(
                {
                    "frame": result.index,
                    "name": result.name,
                    "time": round(result.timestamp, 6),
                    "shares": {
                        name: round(float(area), 4)
                        for name, area in zip(self._card.class_names, areas, strict=True)
                    },
                    "latency_ms": {stage: round(ms, 3) for stage, ms in stages.items()},
                    "drops": self._source.drops,
                }
            )
