"""What several seeds say: means, and differences that are paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95

# Means over classes that the paper argues about, declared before anything was measured.
CLASS_GROUPS = {
    # Each holds less than 1 % of the toy source's pixels; so they do in GTA5.
    "rare": ("traffic light", "traffic sign", "rider", "motorcycle", "bicycle"),
    "road/sidewalk": ("road", "sidewalk"),
    "truck/bus": ("truck", "bus"),
    "motorcycle/bicycle": ("motorcycle", "bicycle"),
}


class Spread(NamedTuple):
    """Some values of one quantity."""

    mean: float
    std: float  # of a sample, with n - 1; NaN for one value
    n: int


class Paired(NamedTuple):
    """A difference between two rows over the seeds that both have."""

    mean: float
    std: float
    n: int
    half_width: float  # of the 95 % interval around `mean`; NaN for one seed
    above: int  # seeds with a difference above 0

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves 0 out. One seed resolves nothing."""
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation. Raises ValueError without values."""
    if not values:
        raise ValueError("no values to take the mean of")
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan, len(values))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """values - baseline, seed by seed; None if no seed has both."""
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    mean, std, n = spread(differences)
    half_width = t_quantile(n - 1) * std / math.sqrt(n) if n > 1 else math.nan
    return Paired(mean, std, n, half_width, sum(difference > 0 for difference in differences))


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """t that |T| stays below with this probability, for Student's T with `freedom` degrees of freedom."""
    low, high = 0.0, 1.0
    while t_coverage(high, freedom) < confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_coverage(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def t_coverage(t: float, freedom: int) -> float:
    """P(|T| < t): the finite sums that Abramowitz and Stegun give for whole degrees of freedom (26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + sine * total if freedom > 1 else angle)
