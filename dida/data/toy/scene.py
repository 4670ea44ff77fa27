"""What stands in a street, and where: one function per kind of object, painted from far to near.

Sizes are in pixels of a 128x256 picture. `x` is an object's middle, `y` the line where it touches the ground,
`s` its scale at that depth (a car is s wide). Classes of a confusable pair share colours and differ in shape
and place, and those are the same in both domains: truck (box and cab), bus (row of small windows), train
(long windows, stripe, no wheels); a person stands on legs, a rider sits on wheels; a motorcycle is solid, a
bicycle see-through.
"""

from collections.abc import Callable
from typing import NamedTuple

from .canvas import MIXED, PAINTED, Canvas, Kind
from .shapes import HEIGHT, WIDTH, X, Y, bar, box, disc, ellipse, stripes, trapezoid

RUBBER = (25.0, 25.0, 27.0)
SKIN = (176.0, 132.0, 110.0)


class Viewpoint(NamedTuple):
    """Where the street vanishes."""

    x: float
    horizon: int


def sky(canvas: Canvas, view: Viewpoint) -> None:
    clouds = 3 + 9 * canvas.look.shift
    light = 1 + (0.25 * (view.horizon - Y) + clouds * canvas.patch) / 255
    canvas.paint(Y <= view.horizon + 5, Kind.SKY, canvas.tint(Kind.SKY), light)


def skyline(canvas: Canvas, view: Viewpoint) -> None:
    """Houses and trees side by side along the horizon, higher towards the edges of the picture."""
    dice, left = canvas.dice, 0
    while left < WIDTH:
        width = dice.integer(18, 60)
        nearness = abs(left + width / 2 - view.x) / WIDTH
        top = view.horizon - dice.integer(10, max(view.horizon - 2, 14)) * (0.35 + 1.1 * nearness)
        kind = dice.uniform(0, 1)
        if kind < 0.55:
            house(canvas, left, top, left + width, view.horizon + 3)
        elif kind < 0.85:
            hedge(canvas, left, top, left + width, view.horizon + 3)
        left += width


def house(canvas: Canvas, left: float, top: float, right: float, bottom: float) -> None:
    windows = stripes(X - int(left), 9, 5) & stripes(Y - int(top), 8, 4)
    light = 1 - 0.26 * canvas.look.relief * windows + 0.03 * canvas.patch
    canvas.paint(box(left, top, right, bottom), Kind.BUILDING, canvas.tint(Kind.BUILDING, MIXED), light)


def hedge(canvas: Canvas, left: float, top: float, right: float, bottom: float) -> None:
    dice = canvas.dice
    leaves = box(left, max(top, bottom - 11), right, bottom)
    for _ in range(6):
        x, y = dice.uniform(left, right), dice.uniform(top, max(bottom - 3, top + 4))
        leaves |= disc(x, y, dice.integer(5, 13))
    light = 1 + 0.18 * canvas.grain + 0.11 * canvas.patch
    canvas.paint(leaves & (Y < bottom), Kind.VEGETATION, canvas.tint(Kind.VEGETATION, MIXED), light)


def ground(canvas: Canvas, view: Viewpoint) -> None:
    """Paved all over, then grass beyond the sidewalks, then the road with its dashes."""
    dice, relief = canvas.dice, canvas.look.relief
    depth = Y - view.horizon
    paving = 1 + 0.09 * relief * stripes(X + Y, 14, 7) + 0.04 * canvas.grain
    canvas.paint(depth > 0, Kind.SIDEWALK, canvas.tint(Kind.SIDEWALK), paving)
    for side in (-1, 1):
        if dice.chance(0.35):
            grass = (depth > 0) & ((X - view.x) * side > depth * 1.9 + 4)
            light = 1 + 0.09 * canvas.grain + 0.04 * canvas.patch
            canvas.paint(grass, Kind.TERRAIN, canvas.tint(Kind.TERRAIN, MIXED), light)
    left, right = dice.uniform(1.25, 1.55), dice.uniform(1.25, 1.55)
    road = (depth > 0) & (X > view.x - depth * left - 3) & (X < view.x + depth * right + 3)
    canvas.paint(road, Kind.ROAD, canvas.tint(Kind.ROAD), 1 + 0.06 * canvas.grain)
    lane = view.x + depth * dice.uniform(-0.25, 0.25)
    canvas.light((depth > 4) & (abs(X - lane) * 40 < depth) & stripes(depth, 16, 8), 1 + 0.5 * relief)


def barrier(canvas: Canvas, view: Viewpoint, side: int) -> None:
    """A wall with level courses or a fence with upright pickets, along one side of the street."""
    dice = canvas.dice
    if not dice.chance(0.45):
        return
    kind = dice.pick((Kind.WALL, Kind.FENCE))
    away = abs(X - view.x)
    foot = view.horizon + away / dice.uniform(2.1, 2.8)
    head = foot - dice.integer(10, 18) * (0.4 + away / WIDTH)
    where = (Y < foot) & (Y > head) & (Y > view.horizon - 6) & ((X - view.x) * side > 12)
    if kind is Kind.WALL:
        light = 1 - 0.22 * canvas.look.relief * stripes(Y, 5, 1) + 0.04 * canvas.grain
    else:
        light = 1 - 0.32 * canvas.look.relief * stripes(X, 5, 2)
    canvas.standing = foot
    canvas.paint(where, kind, canvas.tint(kind, MIXED), light)


def pole(canvas: Canvas, x: float, y: float, s: float) -> None:
    """A post that carries a traffic light, a traffic sign or nothing."""
    dice, half, top = canvas.dice, max(1.5, 0.055 * s), y - 1.9 * s
    canvas.paint(box(x - half, top, x + half + 1, y), Kind.POLE, canvas.tint(Kind.POLE, MIXED))
    r, load = max(3.0, 0.17 * s), dice.uniform(0, 1)
    if load < 0.35:
        lamps = 1 - 0.3 * canvas.look.relief * stripes(Y - int(top), 4, 2)
        where = box(x - 0.7 * r, top, x + 0.7 * r, top + 2.2 * r)
        canvas.paint(where, Kind.LIGHT, canvas.tint(Kind.LIGHT, MIXED), lamps)
    elif load < 0.7:
        where = disc(x, top, r) if dice.chance(0.5) else box(x - r, top - r, x + r, top + r)
        canvas.paint(where, Kind.SIGN, canvas.tint(Kind.SIGN, MIXED))


def wheels(canvas: Canvas, kind: Kind, centres: tuple[float, float], y: float, radius: float) -> None:
    for x in centres:
        canvas.paint(disc(x, y, max(1.0, radius)), kind, RUBBER)


def car(canvas: Canvas, x: float, y: float, s: float) -> None:
    h, colour = 0.55 * s, canvas.tint(Kind.CAR, PAINTED)
    canvas.paint(box(x - 0.5 * s, y - 0.6 * h, x + 0.5 * s, y - 0.05 * h), Kind.CAR, colour)
    canvas.paint(trapezoid(x, y - h, 0.22 * s, y - 0.55 * h, 0.33 * s), Kind.CAR, colour, 0.75)
    wheels(canvas, Kind.CAR, (x - 0.32 * s, x + 0.32 * s), y - 0.07 * s, 0.08 * s)


def truck(canvas: Canvas, x: float, y: float, s: float) -> None:
    w, h, colour = 1.5 * s, 1.05 * s, canvas.tint(Kind.TRUCK, PAINTED)
    canvas.paint(box(x - 0.5 * w, y - h, x + 0.2 * w, y - 0.12 * h), Kind.TRUCK, colour)
    canvas.paint(box(x + 0.22 * w, y - 0.72 * h, x + 0.5 * w, y - 0.12 * h), Kind.TRUCK, colour, 0.72)
    wheels(canvas, Kind.TRUCK, (x - 0.35 * w, x + 0.33 * w), y - 0.06 * h, 0.13 * s)


def bus(canvas: Canvas, x: float, y: float, s: float) -> None:
    w, h, colour = 1.7 * s, s, canvas.tint(Kind.BUS, PAINTED)
    windows = box(x - 0.5 * w + 2, y - 0.85 * h, x + 0.5 * w - 2, y - 0.5 * h) & stripes(X - int(x), 6, 4)
    canvas.paint(box(x - 0.5 * w, y - h, x + 0.5 * w, y - 0.08 * h), Kind.BUS, colour, 1 - 0.36 * windows)
    wheels(canvas, Kind.BUS, (x - 0.35 * w, x + 0.33 * w), y - 0.06 * h, 0.13 * s)


def railcar(canvas: Canvas, x: float, y: float, s: float) -> None:
    w, h, colour = 2.9 * s, 1.05 * s, canvas.tint(Kind.TRAIN, PAINTED)
    windows = box(x - 0.5 * w, y - 0.8 * h, x + 0.5 * w, y - 0.45 * h) & stripes(X - int(x), 12, 9)
    stripe = box(x - 0.5 * w, y - 0.3 * h, x + 0.5 * w, y - 0.2 * h)
    light = 1 - 0.36 * windows + 0.3 * stripe
    canvas.paint(box(x - 0.5 * w, y - h, x + 0.5 * w, y), Kind.TRAIN, colour, light)


def person(canvas: Canvas, x: float, y: float, s: float) -> None:
    colour = canvas.tint(Kind.PERSON, PAINTED)
    for hip in (-0.06 * s, 0.06 * s):
        leg = bar((x + hip, y - 0.4 * s), (x + 1.5 * hip, y), 0.045 * s)
        canvas.paint(leg, Kind.PERSON, colour, 0.6)
    canvas.paint(ellipse(x, y - 0.58 * s, 0.14 * s, 0.26 * s), Kind.PERSON, colour)
    canvas.paint(disc(x, y - 0.9 * s, max(1.0, 0.1 * s)), Kind.PERSON, SKIN)


def bicycle(canvas: Canvas, x: float, y: float, s: float) -> None:
    r, thick, colour = 0.27 * s, max(0.8, 0.045 * s), canvas.tint(Kind.BICYCLE, MIXED)
    hub = y - r
    for wheel in (x - 0.38 * s, x + 0.38 * s):
        canvas.claim(disc(wheel, hub, r), Kind.BICYCLE)
        canvas.paint(disc(wheel, hub, r) & ~disc(wheel, hub, r - 2 * thick), Kind.BICYCLE, colour)
    for start, end in (((-0.38, 0.0), (0.0, 0.0)), ((0.0, 0.0), (0.27, 0.3)), ((-0.2, 0.3), (0.27, 0.3))):
        frame = bar((x + start[0] * s, hub - start[1] * s), (x + end[0] * s, hub - end[1] * s), thick)
        canvas.paint(frame, Kind.BICYCLE, colour)
    if canvas.dice.chance(0.75):
        rider(canvas, x, hub, s)


def motorcycle(canvas: Canvas, x: float, y: float, s: float) -> None:
    r, colour = 0.22 * s, canvas.tint(Kind.MOTORCYCLE, MIXED)
    wheels(canvas, Kind.MOTORCYCLE, (x - 0.4 * s, x + 0.4 * s), y - r, r)
    canvas.paint(ellipse(x, y - 1.3 * r, 0.4 * s, 0.17 * s), Kind.MOTORCYCLE, colour)
    canvas.paint(bar((x + 0.4 * s, y - r), (x + 0.28 * s, y - 2.6 * r), 0.05 * s), Kind.MOTORCYCLE, colour)
    if canvas.dice.chance(0.75):
        rider(canvas, x, y - 1.3 * r, s)


def rider(canvas: Canvas, x: float, seat: float, s: float) -> None:
    """Leans forward over what is below: a person's clothes, but bent, and no ground underneath."""
    colour = canvas.tint(Kind.RIDER, PAINTED)
    leg = bar((x - 0.08 * s, seat - 0.22 * s), (x + 0.08 * s, seat + 0.1 * s), 0.06 * s)
    back = bar((x - 0.08 * s, seat - 0.25 * s), (x + 0.08 * s, seat - 0.55 * s), 0.13 * s)
    arm = bar((x + 0.08 * s, seat - 0.5 * s), (x + 0.27 * s, seat - 0.3 * s), 0.05 * s)
    canvas.paint(leg, Kind.RIDER, colour, 0.6)
    canvas.paint(back | arm, Kind.RIDER, colour)
    canvas.paint(disc(x + 0.13 * s, seat - 0.75 * s, max(1.0, 0.1 * s)), Kind.RIDER, SKIN)


class Stock(NamedTuple):
    """How often an object occurs and where it may stand."""

    draw: Callable[[Canvas, float, float, float], None]
    most: int  # this many tries per picture ...
    share: float  # ... each of which succeeds with this probability
    depth: tuple[float, float]  # 0 at the horizon, 1 at the lower edge of the picture
    aside: tuple[float, float]  # from the vanishing line to either side, in heights of the ground below it
    size: float  # relative to a car's s


STREET = (
    Stock(car, 5, 0.36, (0.12, 0.6), (0.06, 1.1), 1.0),
    Stock(truck, 1, 0.26, (0.18, 0.7), (0.35, 1.2), 1.0),
    Stock(bus, 1, 0.24, (0.18, 0.7), (0.35, 1.2), 1.0),
    Stock(railcar, 1, 0.15, (0.18, 0.7), (0.35, 1.2), 1.0),
    Stock(motorcycle, 1, 0.3, (0.2, 0.6), (0.25, 1.3), 1.05),
    Stock(bicycle, 1, 0.34, (0.2, 0.6), (0.25, 1.3), 1.15),
    Stock(person, 4, 0.45, (0.12, 0.65), (1.4, 2.2), 1.0),
    Stock(pole, 5, 0.48, (0.15, 0.6), (1.5, 2.1), 1.0),
)


def street(canvas: Canvas) -> None:
    """Paint a whole scene: backdrop first, then the objects by depth, so that near ones hide far ones."""
    dice = canvas.dice
    across, up = (float(dice.bell(1)[0]) for _ in range(2))
    view = Viewpoint(WIDTH * (0.5 + 0.08 * across), int(HEIGHT * (0.42 + 0.05 * up)))
    canvas.horizon = canvas.standing = view.horizon
    sky(canvas, view)
    canvas.standing = view.horizon + 3
    skyline(canvas, view)
    canvas.standing = Y
    ground(canvas, view)
    for side in (-1, 1):
        barrier(canvas, view, side)
    cast = [item for item in STREET for _ in range(item.most) if dice.chance(item.share)]
    for depth, item in sorted(((dice.uniform(*item.depth), item) for item in cast), key=lambda pair: pair[0]):
        reach = depth * (HEIGHT - view.horizon)
        x = view.x + dice.pick((-1, 1)) * dice.uniform(*item.aside) * reach
        canvas.standing = view.horizon + reach
        item.draw(canvas, x, view.horizon + reach, (9 + 66 * depth) * item.size * canvas.look.size)


def hood(canvas: Canvas) -> None:
    """The camera car's own hood at the lower edge: void, as in Cityscapes."""
    where = ellipse(WIDTH / 2, 1.06 * HEIGHT, 0.55 * WIDTH, 0.13 * HEIGHT)
    canvas.standing = HEIGHT
    canvas.paint(where, Kind.EGO, canvas.tint(Kind.EGO))
