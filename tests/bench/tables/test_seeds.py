"""Numbers over seeds, against values worked out by hand or printed in tables of Student's t."""

import math

import pytest

from bench.tables.seeds import CLASS_GROUPS, paired, spread, t_coverage, t_quantile
from dida.data.classes import CITYSCAPES_CLASSES


@pytest.mark.parametrize(
    "freedom, printed",
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (7, 2.365), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_printed_tables(freedom, printed):
    assert t_quantile(freedom) == pytest.approx(printed, abs=5e-4)
    assert t_coverage(t_quantile(freedom), freedom) == pytest.approx(0.95)


def test_another_confidence():
    assert t_quantile(7, 0.99) == pytest.approx(3.499, abs=5e-4)


def test_one_degree_of_freedom_is_the_cauchy_distribution():
    assert t_coverage(1.0, 1) == pytest.approx(0.5)


def test_spread():
    assert spread([2.0, 4.0, 6.0]) == (4.0, 2.0, 3)
    one = spread([5.0])
    assert (one.mean, one.n) == (5.0, 1)
    assert math.isnan(one.std)
    with pytest.raises(ValueError):
        spread([])


def test_an_interval_that_holds_0_is_not_resolved():
    found = paired({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert (found.mean, found.std, found.n, found.above) == (2.0, 1.0, 3, 3)
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found.low == pytest.approx(-0.4842, abs=1e-4)
    assert found.high == pytest.approx(4.4842, abs=1e-4)
    assert not found.resolved


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_that_leaves_0_out_is_resolved(sign):
    found = paired({i: sign * d for i, d in enumerate((1.0, 2.0, 3.0, 2.0))}, dict.fromkeys(range(4), 0.0))
    assert found.half_width == pytest.approx(3.1824 * math.sqrt(2 / 3) / 2, abs=1e-4)
    assert found.resolved
    assert found.above == (4 if sign > 0 else 0)


def test_pairing_takes_out_what_seeds_have_in_common():
    """Two rows that seeds move by 40 points, and a gain of 1 to 1.2 that every seed shows."""
    base = {0: 30.0, 1: 50.0, 2: 70.0}
    found = paired({0: 31.0, 1: 51.2, 2: 71.1}, base)
    assert spread(list(base.values())).std == 20.0
    assert found.resolved


def test_only_seeds_that_both_have_are_paired():
    assert paired({0: 1.0, 1: 5.0}, {1: 4.0, 2: 9.0})[:3] == (1.0, pytest.approx(math.nan, nan_ok=True), 1)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_resolves_nothing():
    found = paired({0: 90.0}, {0: 10.0})
    assert found.mean == 80.0
    assert math.isnan(found.half_width)
    assert not found.resolved


def test_groups_are_classes():
    assert {name for group in CLASS_GROUPS.values() for name in group} <= set(CITYSCAPES_CLASSES.names)
