"""The same streets at night and in fog: what air and lamps do between the painted canvas and the camera.

Exact arithmetic, as everywhere here: light falls off by a rational curve instead of an exponential. The draws come
from dice of their own, so that a street is the same street in any weather.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from .canvas import Canvas, Kind
from .dice import Dice
from .shapes import HEIGHT, WIDTH, X, Y, bar

Weather = Literal["day", "night", "fog"]

NIGHT_SKY = np.array([0.16, 0.19, 0.30])  # what is left of each channel where no lamp reaches
SODIUM = np.array([1.0, 0.80, 0.52])
HEADLIGHT = np.array([1.0, 0.97, 0.90])
SHINING = {Kind.LIGHT: 2.6, Kind.SIGN: 1.9}  # lamps of their own, and what is made to throw light back


def night(canvas: Canvas, dice: Dice) -> None:
    """Dark, lit in pools by street lamps and by the car's own headlights; the sensor's noise grows."""
    light = np.broadcast_to(NIGHT_SKY, canvas.image.shape).copy()
    glow = np.zeros_like(canvas.image)
    for _ in range(dice.integer(2, 6)):
        x, y = dice.uniform(0, WIDTH), canvas.horizon - dice.uniform(8, 40)
        reach, power = dice.uniform(14, 34), dice.uniform(0.5, 1.1)
        foot = canvas.horizon + dice.uniform(6, 40)
        light += power * fall_off(x, foot, 2.2 * reach, 0.7 * reach)[..., None] * SODIUM
        light += 0.5 * power * fall_off(x, y, reach, reach)[..., None] * SODIUM
        glow += 190 * power * fall_off(x, y, 2.6, 2.6)[..., None] * SODIUM
    below = np.clip((Y - canvas.horizon) / (HEIGHT - canvas.horizon), 0, 1)
    beam = fall_off(WIDTH / 2, 0.8 * HEIGHT, 0.26 * WIDTH, 0.3 * HEIGHT) * below
    light += dice.uniform(0.35, 0.75) * beam[..., None] * HEADLIGHT
    for kind, factor in SHINING.items():
        light[canvas.label == kind] *= factor
    canvas.image[:] = canvas.image * light + glow + 9 * dice.bell(HEIGHT, WIDTH, 3)


def fog(canvas: Canvas, dice: Dice) -> None:
    """A grey veil that thickens with distance, and rain in half of the pictures."""
    thickness = dice.uniform(0.02, 0.075)
    clear = 1 / (1 + thickness * distance(canvas))
    clear = (clear * clear)[..., None]
    air = dice.uniform(150, 205) * np.array([0.98, 1.0, 1.03])
    canvas.image[:] = clear * canvas.image + (1 - clear) * air
    if dice.chance(0.5):
        slant = dice.uniform(-0.35, 0.35)
        for _ in range(dice.integer(60, 140)):
            x, y, length = dice.uniform(0, WIDTH), dice.uniform(0, HEIGHT), dice.uniform(5, 14)
            drop = bar((x, y), (x + slant * length, y + length), 0.6)
            canvas.image[drop] = 0.72 * canvas.image[drop] + 0.28 * 225


def distance(canvas: Canvas) -> np.ndarray:
    """[H, W] distance of what is seen, in heights of the picture's lower half: from the row where it stands."""
    return HEIGHT / np.maximum(canvas.foot - canvas.horizon, 0.5)


def fall_off(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    """[H, W] light of a lamp: 1 at its middle, a half at the rim of the ellipse."""
    a, b = (X - x) / half_width, (Y - y) / half_height
    return 1 / (1 + a * a + b * b)


# By day nothing is between a surface and the camera.
WEATHER: dict[Weather, Callable[[Canvas, Dice], None]] = {"night": night, "fog": fog}
