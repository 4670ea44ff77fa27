"""The sheet a street is painted on, and how each domain colours what is painted."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from .dice import Dice
from .shapes import HEIGHT, WIDTH, X, Y

RGB = tuple[float, float, float]  # each 0 .. 255


class Kind(IntEnum):
    """What a pixel shows; the value is the Cityscapes label id, which GTA5's label maps use as well."""

    EGO = 1  # the camera car's own hood: void
    ROAD = 7
    SIDEWALK = 8
    BUILDING = 11
    WALL = 12
    FENCE = 13
    POLE = 17
    LIGHT = 19
    SIGN = 20
    VEGETATION = 21
    TERRAIN = 22
    SKY = 23
    PERSON = 24
    RIDER = 25
    CAR = 26
    TRUCK = 27
    BUS = 28
    TRAIN = 31
    MOTORCYCLE = 32
    BICYCLE = 33


class HSV(NamedTuple):
    """Hue in degrees, saturation and value in percent."""

    hue: float
    saturation: float
    value: float

    def rgb(self) -> RGB:
        saturation, value = (min(max(x, 0.0), 100.0) / 100 for x in self[1:])

        def channel(offset: int) -> float:
            k = (offset + self.hue / 60) % 6
            return 255 * value * (1 - saturation * max(0.0, min(k, 4 - k, 1.0)))

        return channel(5), channel(3), channel(1)


# Colour in the source domain and, at full shift, in the target domain. Classes that people confuse share a
# corner of colour space, and the shift is class-specific and lies: a target truck wears the colour of source
# buses, a target wall that of source buildings. A common cast would be undone by colour jitter and prove
# nothing.
COLOURS = {
    Kind.ROAD: (HSV(220, 10, 37), HSV(250, 7, 46)),
    Kind.SIDEWALK: (HSV(40, 11, 53), HSV(5, 9, 46)),
    Kind.BUILDING: (HSV(24, 31, 49), HSV(44, 15, 55)),
    Kind.WALL: (HSV(30, 18, 46), HSV(16, 25, 42)),
    Kind.FENCE: (HSV(200, 13, 43), HSV(150, 14, 37)),
    Kind.POLE: (HSV(0, 4, 34), HSV(210, 8, 44)),
    Kind.LIGHT: (HSV(50, 78, 59), HSV(84, 46, 46)),
    Kind.SIGN: (HSV(220, 75, 71), HSV(190, 48, 60)),
    Kind.VEGETATION: (HSV(110, 63, 35), HSV(82, 40, 33)),
    Kind.TERRAIN: (HSV(84, 47, 44), HSV(58, 34, 42)),
    Kind.SKY: (HSV(210, 55, 88), HSV(225, 14, 84)),
    Kind.PERSON: (HSV(340, 52, 50), HSV(300, 38, 42)),
    Kind.RIDER: (HSV(330, 56, 52), HSV(350, 36, 46)),
    Kind.CAR: (HSV(230, 62, 54), HSV(198, 32, 48)),
    Kind.TRUCK: (HSV(40, 50, 63), HSV(16, 38, 55)),
    Kind.BUS: (HSV(12, 64, 62), HSV(44, 44, 57)),
    Kind.TRAIN: (HSV(190, 36, 62), HSV(218, 28, 52)),
    Kind.MOTORCYCLE: (HSV(300, 44, 28), HSV(266, 28, 26)),
    Kind.BICYCLE: (HSV(262, 32, 31), HSV(294, 26, 26)),
    Kind.EGO: (HSV(220, 10, 20), HSV(220, 10, 20)),
}

# Deviation of hue, saturation and value from one object to the next.
PLAIN = HSV(4, 2.5, 2.5)  # surfaces
MIXED = HSV(10, 7, 5.5)  # things of one make
PAINTED = HSV(36, 12, 10)  # vehicles and clothes, which come in any colour


@dataclass(frozen=True)
class Look:
    """How a domain is drawn. `shift` 0 is the source; the dial goes to 1."""

    shift: float = 0.0

    def colour(self, kind: Kind) -> HSV:
        source, target = COLOURS[kind]
        return HSV(*(a + self.shift * (b - a) for a, b in zip(source, target, strict=True)))

    @property
    def grain_cell(self) -> int:
        """Pixels between the nodes of the fine texture: coarser in the target."""
        return 2 + round(2 * self.shift)

    @property
    def patch_cell(self) -> int:
        """Pixels between the nodes of the coarse texture: finer in the target."""
        return 9 - round(4 * self.shift)

    @property
    def relief(self) -> float:
        """Contrast of windows, paving and pickets: the cue weakens under the shift but survives."""
        return 1 - 0.4 * self.shift

    @property
    def size(self) -> float:
        """Objects are a little smaller in the target: another focal length."""
        return 1 - 0.1 * self.shift


@dataclass
class Canvas:
    """A picture in the making. Later paint covers earlier paint, so paint from far to near."""

    look: Look
    dice: Dice
    # [H, W, 3] RGB, may leave 0 .. 255 until the camera clips. float64, since NumPy 1 and 2 promote float32
    # differently when it meets a NumPy scalar.
    image: np.ndarray
    label: np.ndarray  # [H, W] uint8, Cityscapes label ids
    grain: np.ndarray  # [H, W] fine texture, mean 0, deviation 0.7
    patch: np.ndarray  # [H, W] coarse texture, likewise
    foot: np.ndarray  # [H, W] row where what is seen stands on the ground: how far away it is
    horizon: int = 0  # row where the ground ends
    standing: np.ndarray | float = 0.0  # the row on which what is painted next stands, a number or a map

    @classmethod
    def blank(cls, look: Look, dice: Dice) -> "Canvas":
        image, label = np.zeros((HEIGHT, WIDTH, 3)), np.zeros((HEIGHT, WIDTH), np.uint8)
        grain, patch = value_noise(dice, look.grain_cell), value_noise(dice, look.patch_cell)
        return cls(look, dice, image, label, grain, patch, foot=np.zeros((HEIGHT, WIDTH)))

    def tint(self, kind: Kind, spread: HSV = PLAIN) -> RGB:
        """The colour of one object of this kind, drawn around the kind's own."""
        own, bell = self.look.colour(kind), self.dice.bell(3)
        return HSV(*(a + s * float(b) for a, s, b in zip(own, spread, bell, strict=True))).rgb()

    def paint(self, where: np.ndarray, kind: Kind, colour: RGB, light: np.ndarray | float = 1.0) -> None:
        """Colour and label the pixels `where`; `light`, a number or a map, scales the colour."""
        at = np.nonzero(np.broadcast_to(where, self.label.shape))
        self.image[at] = np.array(colour) * np.broadcast_to(light, self.label.shape)[at][:, None]
        self.label[at] = kind
        self.foot[at] = np.broadcast_to(self.standing, self.label.shape)[at]

    def claim(self, where: np.ndarray, kind: Kind) -> None:
        """Label pixels without colouring them: what is seen between the spokes counts as the bicycle."""
        self.label[where] = kind
        self.foot[where] = self.standing

    def light(self, where: np.ndarray, factor: float) -> None:
        """Brighten or darken what is painted there, without changing what it is."""
        self.image[where] *= factor


def value_noise(dice: Dice, cell: int) -> np.ndarray:
    """[H, W] smooth noise: bell-shaped values on a lattice of `cell` pixels, bilinear in between."""
    node = dice.bell(HEIGHT // cell + 2, WIDTH // cell + 2)
    (y, fy), (x, fx) = ((axis // cell, (axis % cell) / cell) for axis in (Y, X))
    upper = node[y, x] * (1 - fx) + node[y, x + 1] * fx
    lower = node[y + 1, x] * (1 - fx) + node[y + 1, x + 1] * fx
    return upper * (1 - fy) + lower * fy
