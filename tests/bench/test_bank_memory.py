"""The memory curve: what is counted grows as it must, and the answer is computed right from a hand-made series."""

import pytest
import torch

pytest.importorskip("triton")

from bench import bank_memory
from bench.bank_memory import Branch, Rest
from bench.compiled import launches
from tests.cases import MAIN, resized

SCENE = resized(MAIN, D=32, hw=(16, 16), HW=(64, 64))


def test_equations_grow_with_the_bank_and_kernels_stop_growing():
    peaks = {
        form: [bank_memory.count_branch(form, resized(SCENE, K=slots)).peak for slots in (500, 1000, 2000)]
        for form in bank_memory.FORMS
    }
    for form in ("paper", "stride4"):
        first, second, third = peaks[form]
        assert third - second == pytest.approx(2 * (second - first), rel=0.02)
    assert peaks["paper"][0] > 10 * peaks["stride4"][0]
    assert peaks["ours"][2] < 1.1 * peaks["ours"][1]
    assert peaks["ours"][2] < peaks["paper"][0]


def test_the_loss_of_any_bank_stays_within_what_was_asked_for():
    """At 2 x 512 x 512: 280 MB and 1.1 GB moved with the paper's bank, 400 MB with any."""
    for dtype in (torch.float32, torch.bfloat16):
        assert bank_memory.count_branch("ours", MAIN, dtype).loss <= 280e6
        assert bank_memory.count_branch("ours", resized(MAIN, K=100_000), dtype).loss <= 400e6
        assert launches.record_call("instance_loss", MAIN, dtype, bank_memory.CAPABILITY).moved <= 1.1e9


def test_crossing_is_between_the_two_points_around_it():
    assert bank_memory.crossing([100, 200, 400], [10, 20, 40], 30) == 300
    assert bank_memory.crossing([100, 200], [10, 20], 30) is None
    assert bank_memory.crossing([100, 200], [50, 60], 30) == 100
    assert bank_memory.crossing([100, 200, 400], [10, 20, None], 20) == 200  # measured until it did not fit


def test_slope_ignores_what_did_not_fit():
    assert bank_memory.slope([100, 200, 400], [10, 20, None]) == 0.1


def test_the_peak_of_a_step_is_the_highest_of_its_places():
    rest = Rest(at_gather=20, at_loss=70, peak=80)
    assert bank_memory.step_peak(rest, Branch(gather=5, loss=5), bank=1) == 81
    assert bank_memory.step_peak(rest, Branch(gather=5, loss=30), bank=1) == 101
    assert bank_memory.step_peak(rest, Branch(gather=90, loss=5), bank=1) == 111
    assert bank_memory.step_peak(rest, Branch(gather=5, loss=None), bank=1) is None


def test_the_report_takes_every_number_from_the_result():
    rows = [
        {"K": slots, "form": form, "branch": slots << 20, "step": slots << 21}
        for slots in (100, 20_000)
        for form in bank_memory.FORMS
    ]
    result = {
        "header": {"device": "counted"},
        "card": bank_memory.CARD,
        "rest": Rest(1 << 20, 2 << 20, 3 << 20)._asdict(),
        "rows": rows,
        "forms": bank_memory.by_form(rows),
        "loss": {"paper float32": {"moved": 39_000_000_000, "peak": 4_610_000_000, "peak_at_largest_K": 10**12}},
    }
    text = bank_memory.memory_report(result)
    assert "12,288" in text  # 24 GiB at 2 MiB a slot
    assert "39.00" in text
    assert "4,610" in text


def test_the_rest_of_a_step_holds_more_at_the_loss_than_at_the_teacher():
    rest = bank_memory.count_rest(resized(SCENE, K=64), backbone="mit_b0")
    assert 0 < rest.at_gather < rest.at_loss <= rest.peak
