"""Two versions beside each other: what is subtracted, who takes turns, and that this version can be asked."""

import pytest

from bench import record
from bench.versions import Sets, fastest, versions_report, ways_to_score

TINY = Sets((128, 64), 1, 2)


def test_what_both_sets_cost_does_not_count():
    seconds = {"few": 5.0 + 2 * 0.25, "many": 5.0 + 10 * 0.25}
    assert Sets((1, 1), 2, 10).difference(seconds.__getitem__) == pytest.approx(0.25)


def test_they_take_turns_and_the_fastest_counts():
    told, left = [], {"before": [3.0, 2.0], "now": [1.0, 4.0]}

    def way(name):
        told.append(name)
        return left[name].pop(0)

    assert fastest({name: lambda name=name: way(name) for name in left}, 2) == {"before": 2.0, "now": 1.0}
    assert told == ["before", "now", "before", "now"]


def test_this_version_is_asked_as_the_other_is(tmp_path):
    ways = ways_to_score({"now": record.ROOT}, tmp_path, TINY)
    assert set(ways) == {"now", "now, --alone"}
    ways["now, --alone"]()  # raises where one of its programs fails


def test_the_table_says_how_many_times_as_fast():
    seconds = {"score a picture": {"before": 0.5, "now": 0.25}}
    text = versions_report({"before": "abc", "turns": 3, "header": {"commit": "def"}, "seconds": seconds})
    assert "| score a picture | now     | 250.0 | 2.00          |" in text
    assert "before: commit abc" in text
