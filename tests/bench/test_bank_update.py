"""The bench of bank_update on the CPU: all its ways do the same work, and what is wrong is not timed."""

import pytest
import torch

import dida_kernels
from bench import bank_update, clocks
from dida_kernels import equations
from tests.cases import MAIN, call, resized

needs_extension = pytest.mark.skipif(
    dida_kernels.report()["bank_update"]["cpp"] != "yes", reason="the C++ extension is not built"
)
IMAGE = resized(MAIN, C=5, D=8, K=12, hw=(16, 16), HW=(16, 16))
GRID = resized(MAIN, C=5, D=8, K=12, hw=(4, 4), HW=(16, 16))


@needs_extension
@pytest.mark.parametrize("scene", [IMAGE, GRID])
def test_ours_and_the_equation_make_the_same_bank(scene):
    ways = bank_update.ways(scene)
    torch.testing.assert_close(ways["ours"](), ways["equation"]())
    assert ("index_add alone" in ways) == (scene is IMAGE)


@needs_extension
def test_index_add_alone_is_the_sum_within_the_equation():
    (_, _, embed_BDhw, label_BHW, _), _ = call("bank_update", IMAGE)
    sum_SD = bank_update.ways(IMAGE)["index_add alone"]()
    row_ND, label_N = equations.pixels(embed_BDhw), label_BHW.flatten()
    for c in range(IMAGE.C):  # a class's interior and boundary together are all its pixels
        both_D = sum_SD[c] + sum_SD[IMAGE.C + c]
        torch.testing.assert_close(both_D, row_ND[label_N == c].sum(0), rtol=1e-4, atol=1e-4)


@needs_extension
def test_every_way_has_its_time_and_what_is_wrong_has_none(monkeypatch):
    monkeypatch.setattr(clocks, "ROUNDS", 2)
    rows = bank_update.survey_updates({"image": IMAGE, "grid": GRID})
    assert len(rows) == 2 * (4 + 3)
    assert all(row["low"] <= row["median"] <= row["high"] for row in rows)
    assert all(row["of_ours"] == 1 for row in rows if row["way"] == "ours")
    assert bank_update.same_bits(IMAGE)
    monkeypatch.setattr(bank_update, "disagreement", lambda *_: "it is red")
    with pytest.raises(RuntimeError, match="not timed: it is red"):
        bank_update.survey_updates({"image": IMAGE})
