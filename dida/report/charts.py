"""Charts as inline SVG: lines over steps, calibration, a matrix, bars. No script and no library."""

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

import numpy as np

from dida.report.markup import element

# Colours of runs, told apart by people with any kind of colour vision (Okabe and Ito).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES = (None, "6 3", "2 3", "8 3 2 3", "4 4", "1 3")  # and where colours are not printed
_WIDE, _HIGH = 340, 200  # of a chart, in its own units, which are pixels at full size
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 30  # margins
_TICKS = 4


def colour_of(index: int) -> str:
    """Of the run at this place."""
    return SERIES[index % len(SERIES)]


def line_chart(series: Mapping[int, Sequence[tuple[float, float]]], *, title: str, unit: str = "step") -> Element:
    """Lines through (x, y) of several runs, by the place of the run; both axes start at 0 where they can."""
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(0.0, *ys), max(0.0, *ys)
    high = high if high > low else low + 1
    step = ticks(low, high)[1] - ticks(low, high)[0]
    frame = _Frame(0.0, max(xs) or 1.0, low, math.ceil(high / step - 1e-9) * step)
    drawn = _chart(title, *frame.axes(unit))
    for place, line in series.items():
        drawn.append(frame.line(line, place))
    return drawn


def calibration_chart(bins: Mapping[int, np.ndarray], *, title: str) -> Element:
    """Accuracy over mean confidence of every bin of several runs, `bins` [3, BINS] each (see `Measured`).

    A circle's area is the share of pixels in its bin; on the dashed line confidence is accuracy.
    """
    frame = _Frame(0.0, 1.0, 0.0, 1.0)
    drawn = _chart(title, *frame.axes("confidence"))
    ends = {"x1": frame.x(0), "y1": frame.y(0), "x2": frame.x(1), "y2": frame.y(1)}
    drawn.append(element("line", class_="ideal", **ends))
    for place, (pixels, confidence, right) in bins.items():
        known = pixels > 0
        sure, hit = confidence[known] / pixels[known], right[known] / pixels[known]
        drawn.append(frame.line(zip(sure, hit, strict=True), place))
        for x, y, share in zip(sure, hit, pixels[known] / pixels.sum(), strict=True):
            radius = 2 + 8 * math.sqrt(share)
            drawn.append(
                element("circle", cx=f"{frame.x(x):.1f}", cy=f"{frame.y(y):.1f}", r=f"{radius:.1f}",
                        fill=colour_of(place), fill_opacity="0.6")
            )  # fmt: skip
    return drawn


def matrix_chart(share_CC: np.ndarray, names: Sequence[str], *, title: str) -> Element:
    """Shares [C, C] in [0, 1], NaN for a row of nothing, as squares; in percent from 1 on, where there is room."""
    C, cell, margin = len(names), 30, 96
    side = margin + C * cell
    # The turned names of the last columns reach to the right of them.
    box = f"0 0 {side + margin // 2} {side}"
    drawn = element("svg", element("title", title), view_box=box, role="img", class_="matrix")
    for i, name in enumerate(names):
        at = margin + i * cell + cell / 2
        drawn.append(element("text", name, x=margin - 6, y=f"{at + 4}", text_anchor="end"))
        turned = f"rotate(-60 {at + 4} {margin - 6})"
        drawn.append(element("text", name, x=f"{at + 4}", y=margin - 6, transform=turned))
        for j in range(C):
            _square(drawn, float(share_CC[i, j]), margin + j * cell, margin + i * cell, cell)
    return drawn


def _square(drawn: Element, share: float, left: int, top: int, cell: int) -> None:
    known = not math.isnan(share)
    # A square root, because what is confused is mostly a few percent, and should be seen.
    fill = f"rgba(0,114,178,{math.sqrt(share):.3f})" if known else "#eee"
    drawn.append(element("rect", x=left, y=top, width=cell - 1, height=cell - 1, fill=fill))
    if known and share >= 0.01:
        ink = "fill:#fff" if math.sqrt(share) > 0.6 else "fill:#222"
        drawn.append(
            element("text", f"{100 * share:.0f}", x=left + cell / 2, y=top + cell / 2 + 4, style=ink,
                    text_anchor="middle")
        )  # fmt: skip


def share_bar(share: float, colour: str) -> Element:
    """A horizontal bar, `share` of its box long, for a cell of a table."""
    width = f"width:{100 * min(max(share, 0.0), 1.0):.1f}%"
    return element("span", element("span", style=f"{width};background:{colour}"), class_="bar")


class _Frame:
    """Where numbers lie on a chart."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self._left, self._right, self._low, self._high = left, right, low, high

    def x(self, value: float) -> float:
        return _LEFT + (value - self._left) / (self._right - self._left) * (_WIDE - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HIGH - _BOTTOM - (value - self._low) / (self._high - self._low) * (_HIGH - _TOP - _BOTTOM)

    def line(self, points: Iterable[tuple[float, float]], place: int) -> Element:
        """Through (x, y), in the look of the run at this place."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        dashes = _DASHES[place % len(_DASHES)]
        return element("polyline", points=path, class_="line", stroke=colour_of(place), stroke_dasharray=dashes)

    def axes(self, unit: str) -> list[Element]:
        """Lines across at round values with their numbers, and the ends of the horizontal axis."""
        drawn = []
        for value in ticks(self._low, self._high):
            y = f"{self.y(value):.1f}"
            drawn.append(element("line", x1=_LEFT, y1=y, x2=_WIDE - _RIGHT, y2=y, class_="grid"))
            drawn.append(element("text", f"{value:g}", x=_LEFT - 6, y=f"{self.y(value) + 4:.1f}", text_anchor="end"))
        base = _HIGH - _BOTTOM + 16
        for value in ticks(self._left, self._right):
            drawn.append(element("text", f"{value:g}", x=f"{self.x(value):.1f}", y=base, text_anchor="middle"))
        drawn.append(element("text", unit, x=_WIDE - _RIGHT, y=_HIGH - 2, text_anchor="end", class_="unit"))
        return drawn


def ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`: multiples of 1, 2 or 5 times a power of ten, 3 to 6 of them."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _chart(title: str, *content: Element) -> Element:
    return element(
        "svg", element("title", title), *content, view_box=f"0 0 {_WIDE} {_HIGH}", role="img", class_="chart"
    )
