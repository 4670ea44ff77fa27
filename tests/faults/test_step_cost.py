"""What a step pays for being watched: the program that measures it runs, and says what it measured."""

from tests.faults import step_cost
from tests.faults.step_cost import Pair, pairs_of, told_of


def test_a_step_is_timed_beside_what_watches_it(tmp_path, monkeypatch):
    small = {"backbone": "test_resnet", "embed_dim": 16, "crop": 64, "bank_size": 40, "batch_size": 1}
    monkeypatch.setattr(step_cost, "OPTIONS", step_cost.OPTIONS | small)
    (pair,) = pairs_of(tmp_path, 1)
    assert 0 < pair.watching < pair.step


def test_the_ratio_is_that_of_a_watched_step_to_one_that_is_not():
    assert "median **1.2500**, 1.1111 to 1.2500 in 3 pairs" in told_of([Pair(1, 0.2), Pair(1, 0.1), Pair(1, 0.2)])
