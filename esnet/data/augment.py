"""Random views of a labelled picture for training: geometry in one warp, colours in one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from esnet.data.labelled import Sample

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as OpenCV's RGB2GRAY
_FILL = (128, 128, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What may happen to a training picture. The defaults change nothing but the crop."""

    crop_hw: tuple[int, int]
    """Size of every view, multiples of 8."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the zoom, drawn log-uniformly: half and double are equally likely."""
    stretch: float = 0.0
    """Largest change of the aspect ratio, as a share: 0.1 is 10 % wider or narrower."""
    rotation_deg: float = 0.0
    """Largest rotation to either side, degrees."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    brightness: float = 0.0
    """Largest shift of all channels, as a share of the range 0-255."""
    contrast: float = 0.0
    """Largest relative change of the distance to mid-grey."""
    saturation: float = 0.0
    """Largest relative change of the distance to the grey of the same luma."""
    tint: float = 0.0
    """Largest relative change of each channel's gain."""


def augment(
    sample: Sample, settings: Augmentation, ignore_index: int, random: np.random.Generator
) -> Sample:
    """Draw a random view.

    Args:
        sample: The picture, any size.
        settings: What may happen.
        ignore_index: Label of what lies outside the picture; the picture itself is grey there.
        random: The source of chance.

    Returns:
        A fresh sample of ``settings.crop_hw``.
    """
    matrix = _view_matrix(sample.labels.shape, settings, random)
    height, width = settings.crop_hw
    size = (width, height)
    image = cv2.warpAffine(sample.image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=_FILL)
    labels = cv2.warpAffine(
        sample.labels, matrix, size, flags=cv2.INTER_NEAREST, borderValue=ignore_index
    )
    return Sample(cv2.transform(image, _colour_matrix(settings, random)), labels)


def _view_matrix(
    size_hw: tuple[int, ...], settings: Augmentation, random: np.random.Generator
) -> np.ndarray:
    """Make the 2x3 map from the picture's pixels to the view's."""
    low, high = np.log(settings.scale)
    zoom = np.exp(random.uniform(low, high))
    stretch = np.exp(random.uniform(-1, 1) * np.log1p(settings.stretch) / 2)
    mirror = -1.0 if random.random() < settings.flip else 1.0
    angle = np.radians(random.uniform(-1, 1) * settings.rotation_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([mirror * zoom * stretch, zoom / stretch])
    picture = np.array([size_hw[1], size_hw[0]], float)
    view = np.array([settings.crop_hw[1], settings.crop_hw[0]], float)
    slack = (
        np.abs(picture * zoom - view) / 2
    )  # the view may move over what is larger than the other
    centre = view / 2 + random.uniform(-1, 1, 2) * slack
    # Centres of pixels lie at +0.5, as cv2.resize has it.
    offset = centre - linear @ (picture / 2 - 0.5) - 0.5
    return np.column_stack([linear, offset])


def _colour_matrix(settings: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Make the 3x4 map of RGB values (cv2.transform rounds and clips)."""
    gains = 1 + random.uniform(-1, 1, 3) * settings.tint
    saturation = 1 + random.uniform(-1, 1) * settings.saturation
    contrast = 1 + random.uniform(-1, 1) * settings.contrast
    shift = 255 * random.uniform(-1, 1) * settings.brightness + 127.5 * (1 - contrast)
    mix = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    return np.column_stack([contrast * (mix * gains), np.full(3, shift)])
