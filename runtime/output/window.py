"""A live window with the rate of its frames."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from runtime.errors import InvalidInput
from runtime.output.images import bgr_from_rgb

_CLOSING_KEYS = (27, ord("q"))  # Esc
_NUM_INTERVALS = 30


@contextmanager
def window_sink(
    title: str, on_close: Callable[[], object]
) -> Iterator[Callable[[np.ndarray | None], None]]:
    """Open a window; use it in the main thread.

    Args:
        title: Text in its title bar.
        on_close: Called when the user closes it, or presses q or Esc.

    Yields:
        Shows RGB uint8 (H, W, 3), or a map uint8 (H, W), and obeys the user; ``None``, while there is no new
        frame, does the latter alone. It does nothing after the window was closed.

    Raises:
        InvalidInput: There is no display, or OpenCV was built without windows.
    """
    # Qt ends the process if there is no display.
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise InvalidInput("there is no display to show a window on", hint="omit --show")
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # about fonts of its own
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    except cv2.error as error:
        raise InvalidInput(
            "this OpenCV was built without windows",
            hint="pip uninstall opencv-python-headless && pip install opencv-python",
        ) from error
    times: deque[float] = deque(maxlen=_NUM_INTERVALS + 1)
    is_open = True

    def show(image: np.ndarray | None) -> None:
        nonlocal is_open
        if not is_open:
            return
        if image is not None:
            if not times:
                cv2.resizeWindow(title, image.shape[1], image.shape[0])
            times.append(time.monotonic())
            cv2.imshow(title, _with_rate(bgr_from_rgb(image), times))
        has_key = cv2.pollKey() & 0xFF in _CLOSING_KEYS
        if has_key or cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
            is_open = False
            on_close()

    try:
        yield show
    finally:
        cv2.destroyAllWindows()


def _with_rate(image: np.ndarray, times: deque[float]) -> np.ndarray:
    """Write the frames per second into the upper right corner of a copy."""
    image = image.copy()
    if len(times) > 1:
        text = f"{(len(times) - 1) / (times[-1] - times[0]):.1f} FPS"
        scale = max(0.5, image.shape[0] / 900)
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
        place = (image.shape[1] - width - height, 2 * height)
        for color, thickness in ((0, 4), (255, 2)):
            cv2.putText(
                image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (color,) * 3, thickness
            )
    return image
