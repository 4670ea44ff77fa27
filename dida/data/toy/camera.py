"""From the painted canvas to the photographed picture: what a camera does to all classes alike.

Exact arithmetic again: gamma is a rational curve instead of a power, blur is a 3x3 binomial.
"""

import numpy as np

from .canvas import Canvas
from .shapes import HEIGHT, WIDTH, X, Y


def photograph(canvas: Canvas, *, sun: bool = True) -> np.ndarray:
    """The canvas as uint8 RGB [H, W, 3]. All effects but a little noise grow with the look's shift; the sun throws a
    shadow across some pictures of the target."""
    dice, shift = canvas.dice, canvas.look.shift
    image = vignette(canvas.image, 0.22 * shift)
    if shift > 0 and dice.chance(0.6):
        middle, lean, half = dice.uniform(0, WIDTH), dice.uniform(-1, 1), dice.uniform(8, 40)
        shadow = (abs(X - middle - (Y - 0.45 * HEIGHT) * lean) < half) & (Y > 0.45 * HEIGHT)
        image = np.where(shadow[..., None] & sun, image * (1 - 0.35 * shift), image)
    image = tone(image, 1 + shift * dice.uniform(-0.3, 0.5))
    image = image * (np.array([1 - 0.10 * shift, 1.0, 1 - 0.04 * shift]) + 0.05 * shift * dice.bell(3))
    image = (image - 128) * (1 - 0.25 * shift) + 128 - 8 * shift
    image = image + 0.8 * shift * (binomial(image) - image)
    image = image + (1.5 + 5.5 * shift) * dice.bell(HEIGHT, WIDTH, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def vignette(image: np.ndarray, strength: float) -> np.ndarray:
    """Darker towards the left and right edges."""
    off = (X - WIDTH / 2) / (WIDTH / 2)
    return image * (1 - strength * (off * off))[..., None]


def tone(image: np.ndarray, bend: float) -> np.ndarray:
    """A gamma-like curve that keeps black and white: bend 1 is the identity, above 1 darkens the middle."""
    image = np.clip(image, 0, 255)
    return 255 * image / (image + bend * (255 - image))


def binomial(image: np.ndarray) -> np.ndarray:
    """Blur with [1 2 1] / 4 in both directions, edges replicated."""
    tall = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode="edge")
    image = 0.25 * tall[:-2] + 0.5 * tall[1:-1] + 0.25 * tall[2:]
    wide = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return 0.25 * wide[:, :-2] + 0.5 * wide[:, 1:-1] + 0.25 * wide[:, 2:]
