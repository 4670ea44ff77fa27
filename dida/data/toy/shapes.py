"""The shapes that can be painted: each is a boolean mask of the whole picture, or broadcasts to one.

They are found by comparing pixel coordinates. OpenCV's drawing is not used: nothing promises that its
releases cover the same pixels. Coordinates are floats in pixels, x to the right and y down; only + - * /
touch them, which IEEE 754 rounds alike everywhere.
"""

import numpy as np

HEIGHT, WIDTH = 128, 256
Y, X = np.ogrid[:HEIGHT, :WIDTH]  # [H, 1] and [1, W]: what depends on one of them is computed once per row


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return (X >= left) & (X < right) & (Y >= top) & (Y < bottom)


def ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    a, b = (X - x) / half_width, (Y - y) / half_height
    return a * a + b * b <= 1


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return ellipse(x, y, radius, radius)


def bar(start: tuple[float, float], end: tuple[float, float], radius: float) -> np.ndarray:
    """A thick line with round ends."""
    (x, y), dx, dy = start, end[0] - start[0], end[1] - start[1]
    along = np.clip(((X - x) * dx + (Y - y) * dy) / (dx * dx + dy * dy), 0, 1)
    a, b = X - x - along * dx, Y - y - along * dy
    return a * a + b * b <= radius * radius


def trapezoid(x: float, top: float, half_top: float, bottom: float, half_bottom: float) -> np.ndarray:
    half = half_top + (Y - top) * ((half_bottom - half_top) / (bottom - top))
    return (Y >= top) & (Y < bottom) & (abs(X - x) <= half)


def stripes(axis: np.ndarray, period: int, width: int) -> np.ndarray:
    """True on the first `width` of every `period` pixels along an axis."""
    return axis % period < width
