"""Random augmentation of a labelled image: one warp for the geometry, one matrix for the colours."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from esnet.data.labelled import Sample

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in OpenCV's RGB2GRAY
_FILL = (128, 128, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Ranges of the random changes. With the defaults, only the crop and the flip are random."""

    crop_hw: tuple[int, int]
    """Height and width of every crop, multiples of 8."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the scale factor, sampled log-uniformly: half and double are equally likely."""
    stretch: float = 0.0
    """Largest change of the aspect ratio: 0.1 is 10 % wider or narrower."""
    rotation_deg: float = 0.0
    """Largest rotation in either direction, degrees."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    brightness: float = 0.0
    """Largest shift of all channels, as a fraction of the range 0-255."""
    contrast: float = 0.0
    """Largest relative change of the distance to mid-grey."""
    saturation: float = 0.0
    """Largest relative change of the distance to the grey of the same luma."""
    tint: float = 0.0
    """Largest relative change of each channel's gain."""


def augment(
    sample: Sample, settings: Augmentation, ignore_index: int, random: np.random.Generator
) -> Sample:
    """Augment an image and its labels at random.

    Args:
        sample: Image and labels of any size; not modified.
        settings: Ranges of the changes.
        ignore_index: Label of pixels outside the image; they are grey.
        random: Random generator.

    Returns:
        A new sample of ``settings.crop_hw``.
    """
    matrix = _geometry_matrix(sample.labels.shape, settings, random)
    size_wh = settings.crop_hw[::-1]
    image = cv2.warpAffine(sample.image, matrix, size_wh, flags=cv2.INTER_LINEAR, borderValue=_FILL)
    labels = cv2.warpAffine(
        sample.labels, matrix, size_wh, flags=cv2.INTER_NEAREST, borderValue=ignore_index
    )
    return Sample(cv2.transform(image, _colour_matrix(settings, random)), labels)


def _geometry_matrix(
    size_hw: tuple[int, ...], settings: Augmentation, random: np.random.Generator
) -> np.ndarray:
    """Make the 2x3 matrix that maps pixels of the image to pixels of the crop."""
    low, high = np.log(settings.scale)
    scale = np.exp(random.uniform(low, high))
    stretch = np.exp(random.uniform(-1, 1) * np.log1p(settings.stretch) / 2)
    mirror = -1.0 if random.random() < settings.flip else 1.0
    angle = np.radians(random.uniform(-1, 1) * settings.rotation_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag([mirror * scale * stretch, scale / stretch])
    image_wh = np.array([size_hw[1], size_hw[0]], float)
    crop_wh = np.array([settings.crop_hw[1], settings.crop_hw[0]], float)
    # The crop may shift by half the difference of the two sizes, also where the image is the smaller one.
    max_shift = np.abs(image_wh * scale - crop_wh) / 2
    centre = crop_wh / 2 + random.uniform(-1, 1, 2) * max_shift
    # Pixel centres are at +0.5, as in cv2.resize.
    offset = centre - linear @ (image_wh / 2 - 0.5) - 0.5
    return np.column_stack([linear, offset])


def _colour_matrix(settings: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Make the 3x4 matrix for RGB values; cv2.transform rounds and clips."""
    gains = 1 + random.uniform(-1, 1, 3) * settings.tint
    saturation = 1 + random.uniform(-1, 1) * settings.saturation
    contrast = 1 + random.uniform(-1, 1) * settings.contrast
    shift = 255 * random.uniform(-1, 1) * settings.brightness + 127.5 * (1 - contrast)
    mix = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    return np.column_stack([contrast * (mix * gains), np.full(3, shift)])
