"""Colour distortion of supervised training: how DAFormer's family shows the source to networks that do not adapt.

The photometric distortion of SSD (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, arXiv:1512.02325) with
its published ranges, which mmsegmentation has as PhotoMetricDistortion. It works on bytes and in OpenCV's 8-bit HSV;
tests/reference holds it to mmsegmentation's result byte by byte.

Every pixel changes by itself, so it makes no difference whether a crop and a flip come before it or after.
"""

from typing import NamedTuple

import cv2
import numpy as np

# Ranges as the original draws from them: low end included, high end not.
BRIGHTNESS = (-32.0, 32.0)  # grey levels
CONTRAST = (0.5, 1.5)  # factor of all channels
SATURATION = (0.5, 1.5)  # factor of S
HUE = (-18, 18)  # whole steps of H
TURN = 180  # OpenCV's H of 360 degrees, so that it fits into a byte


class Distortion(NamedTuple):
    """What is done to one picture, None where nothing: brightness, then saturation and hue; contrast on either side."""

    brightness: float | None  # grey levels to add
    contrast_first: bool  # before saturation and hue; else after them
    contrast: float | None  # factor of all channels
    saturation: float | None  # factor of S
    hue: int | None  # steps of 2 degrees to add to H


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Each part with a chance of one half, and a coin for the place of contrast. Five to nine draws."""

    def coin() -> bool:
        return bool(rng.integers(0, 2))

    def maybe(low: float, high: float) -> float | None:
        return float(rng.uniform(low, high)) if coin() else None

    # In the order of the original, so that a script of its draws can be followed.
    brightness = maybe(*BRIGHTNESS)
    contrast_first = coin()
    contrast = maybe(*CONTRAST) if contrast_first else None
    saturation = maybe(*SATURATION)
    hue = int(rng.integers(*HUE)) if coin() else None
    if not contrast_first:
        contrast = maybe(*CONTRAST)
    return Distortion(brightness, contrast_first, contrast, saturation, hue)


def distorted(image: np.ndarray, distortion: Distortion) -> np.ndarray:
    """The picture in other colours, [H, W, 3] uint8 RGB like `image`, which is left as it is (and returned if nothing
    is to be done)."""
    brightness, contrast_first, contrast, saturation, hue = distortion
    if brightness is not None:
        image = cv2.LUT(image, _scaled_bytes(1, brightness))
    if contrast is not None and contrast_first:
        image = cv2.LUT(image, _scaled_bytes(contrast, 0))
    # Two ways to HSV and back where both are drawn, because the original rounds to bytes in between.
    if saturation is not None:
        image = _through_hsv(image, 1, _scaled_bytes(saturation, 0))
    if hue is not None:
        image = _through_hsv(image, 0, ((np.arange(256) + hue) % TURN).astype(np.uint8))
    if contrast is not None and not contrast_first:
        image = cv2.LUT(image, _scaled_bytes(contrast, 0))
    return image


def _scaled_bytes(factor: float, shift: float) -> np.ndarray:
    """[256] uint8: what becomes of each byte. In single precision and cut off, not rounded, as in the original."""
    scaled = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(shift)
    return scaled.clip(0, 255).astype(np.uint8)


def _through_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Look one channel of HSV up in a table of 256 bytes."""
    hsv: np.ndarray = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = table.take(hsv[..., channel])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
