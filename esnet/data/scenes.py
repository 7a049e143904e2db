"""Generated street scenes with known labels, for demos and tests on machines without a dataset."""

from __future__ import annotations

import cv2
import numpy as np

from esnet.data.labelled import Sample
from esnet.labels import CAMVID

_Color = tuple[int, int, int]
_Point = tuple[float, float]
_IDS = {name: index for index, name in enumerate(CAMVID.class_names)}


def street_scene(size_hw: tuple[int, int], *, seed: int = 0) -> Sample:
    """Draw a street from a dashboard camera's viewpoint: sky, houses, trees, road, pavement, cars, people.

    Colours, texture and noise resemble CamVid photographs, so that a network trained on CamVid recognises
    most of the scene. Accuracy on these scenes does not predict accuracy on real streets.

    Args:
        size_hw: Height and width in pixels.
        seed: Random seed; the same seed draws the same scene at any size.

    Returns:
        RGB image, uint8 (H, W, 3), and CamVid train ids, uint8 (H, W).
    """
    painter = _Painter(size_hw, np.random.default_rng(seed))
    painter.draw_background()
    painter.draw_houses()
    painter.draw_trees()
    painter.draw_street_furniture()
    painter.draw_traffic()
    return Sample(painter.finish(), painter.labels)


class _Painter:
    """Draws each object twice: its colours into the image and its class into the labels.

    Positions are fractions of width and height, 0 to 1.
    """

    def __init__(self, size_hw: tuple[int, int], random: np.random.Generator) -> None:
        self.height, self.width = size_hw
        self.random = random
        self.image = np.zeros((*size_hw, 3), np.uint8)
        self.labels = np.zeros(size_hw, np.uint8)
        self.horizon = float(random.uniform(0.42, 0.5))
        self.vanish = float(random.uniform(0.4, 0.6))

    def draw_background(self) -> None:
        """Draw the sky, the pavement, and a road with lane marks that narrows to the vanishing point."""
        haze = np.linspace(0, 1, self.height)[:, None, None]
        self.image[:] = (200 + 40 * haze + np.array([0, 5, 12]) * (1 - haze)).astype(np.uint8)
        self.labels[:] = _IDS["sky"]
        self._box(0.5, 1, 1, 1 - self.horizon, "pavement", (118, 112, 106))
        half = float(self.random.uniform(0.34, 0.44))
        top, bottom = self.vanish, 0.5
        far = [(top - 0.03, self.horizon), (top + 0.03, self.horizon)]
        near = [(bottom + half, 1.0), (bottom - half, 1.0)]
        self._polygon([*far, *near], "road", (88, 86, 88))
        for step in np.linspace(0.1, 0.95, 7):
            x, y = top + (bottom - top) * step, self.horizon + (1 - self.horizon) * step
            self._box(x, y + 0.03 * step, 0.008 * step, 0.06 * step, "road", (190, 188, 180))

    def draw_houses(self) -> None:
        """Draw rows of houses with windows on both sides, lower towards the vanishing point."""
        for side in (-1, 1):
            for index, distance in enumerate(np.linspace(0.5, 0.1, 5)):
                x = self.vanish + side * distance * 1.1
                height = (0.2 + distance * 0.5) * float(self.random.uniform(0.8, 1.1))
                width = 0.06 + distance * 0.22
                brick = self._tint((118 - 6 * index, 92, 78), 25)
                self._box(x, self.horizon + 0.08 * distance, width, height, "building", brick)
                for row in range(3):
                    for column in range(3):
                        center = x + (column - 1) * width * 0.3
                        bottom = self.horizon - height * (0.2 + 0.26 * row)
                        size = (width * 0.14, height * 0.13)
                        self._box(center, bottom, *size, "building", (52, 56, 64))

    def draw_trees(self) -> None:
        """Draw trees with round crowns in front of the houses."""
        for _ in range(5):
            side = self.random.choice([-1, 1])
            x = self.vanish + side * float(self.random.uniform(0.15, 0.55))
            size = float(self.random.uniform(0.06, 0.14))
            self._box(x, self.horizon + 0.08, 0.012, 0.2, "tree", (62, 52, 44))
            for _ in range(6):
                dx, dy = self.random.normal(0, size * 0.4, 2)
                crown = (x + dx, self.horizon - 0.12 + dy)
                self._ellipse(crown, (size * 0.5, size * 0.8), "tree", self._tint((62, 74, 46), 14))

    def draw_street_furniture(self) -> None:
        """Draw fences, lamp posts and signs on the pavements."""
        for side in (-1, 1):
            x = self.vanish + side * float(self.random.uniform(0.4, 0.5))
            self._box(x, self.horizon + 0.16, 0.16, 0.09, "fence", (96, 90, 82))
            x = self.vanish + side * float(self.random.uniform(0.2, 0.34))
            foot = self.horizon + 0.14
            self._box(x, foot, 0.008, 0.42, "pole", (104, 102, 98))
            self._box(x, foot - 0.3, 0.035, 0.06, "sign symbol", self._tint((150, 60, 56), 20))

    def draw_traffic(self) -> None:
        """Draw cars on the road, and pedestrians and a bicyclist beside it."""
        for depth in sorted(self.random.uniform(0.15, 0.6, 3)):
            side = self.random.choice([-1, 1])
            x = self.vanish + side * (0.04 + 0.22 * depth)
            foot = self.horizon + (1 - self.horizon) * depth
            width, height = 0.05 + 0.24 * depth, 0.05 + 0.24 * depth
            paint = self._tint((86, 84, 92), 60)
            self._box(x, foot, width, height * 0.6, "car", paint)
            self._box(x, foot - height * 0.55, width * 0.75, height * 0.45, "car", (44, 48, 54))
            for wheel in (-0.32, 0.32):
                center = (x + wheel * width, foot)
                self._ellipse(center, (width * 0.1, height * 0.12), "car", (26, 26, 28))
        for name in ("pedestrian", "pedestrian", "bicyclist"):
            side = self.random.choice([-1, 1])
            x = self.vanish + side * float(self.random.uniform(0.3, 0.42))
            foot, height = self.horizon + float(self.random.uniform(0.18, 0.26)), 0.2
            self._box(x, foot, 0.025, height * 0.8, name, self._tint((70, 62, 66), 30))
            self._ellipse((x, foot - height * 0.88), (0.012, 0.025), name, (170, 136, 118))
            if name == "bicyclist":
                for wheel in (-0.02, 0.02):
                    self._ellipse((x + wheel, foot), (0.018, 0.035), name, (34, 34, 36))

    def finish(self) -> np.ndarray:
        """Add texture, blur and noise."""
        coarse = self.random.normal(0, 7, (64, 128)).astype(np.float32)
        texture = cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        image: np.ndarray = self.image + texture[..., None]
        image = cv2.GaussianBlur(image, (0, 0), max(0.3, self.height / 700))
        image = image + np.random.default_rng(0).normal(0, 4, image.shape)
        return np.clip(image, 0, 255).astype(np.uint8)

    def _tint(self, color: _Color, spread: int) -> _Color:
        shift = int(self.random.integers(-spread, spread + 1))
        red, green, blue = (int(np.clip(value + shift, 0, 255)) for value in color)
        return red, green, blue

    def _box(
        self, x: float, bottom: float, width: float, height: float, name: str, color: _Color
    ) -> None:
        """Draw an upright box; ``x`` is its centre."""
        left, right, top = x - width / 2, x + width / 2, bottom - height
        self._polygon([(left, top), (right, top), (right, bottom), (left, bottom)], name, color)

    def _polygon(self, corners: list[_Point], name: str, color: _Color) -> None:
        points = np.array([self._pixel(corner) for corner in corners], np.int32)
        cv2.fillPoly(self.image, [points], color)
        cv2.fillPoly(self.labels, [points], _IDS[name])

    def _ellipse(self, center: _Point, radii: _Point, name: str, color: _Color) -> None:
        axes = (max(1, round(radii[0] * self.width)), max(1, round(radii[1] * self.height)))
        cv2.ellipse(self.image, self._pixel(center), axes, 0, 0, 360, color, cv2.FILLED)
        cv2.ellipse(self.labels, self._pixel(center), axes, 0, 0, 360, _IDS[name], cv2.FILLED)

    def _pixel(self, point: _Point) -> tuple[int, int]:
        return round(point[0] * self.width), round(point[1] * self.height)
