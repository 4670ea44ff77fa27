"""One table of several targets: every number is that of the target's own tables."""

from dataclasses import replace

import pytest

from bench.tables import targets
from bench.tables.rows import DAFORMER, PAPER, PAPER_ALONE, PRIOR, PRIOR_SCALED, SCALED_ALONE
from bench.tables.targets import TargetsOptions, targets_command
from tests.bench.tables.records import cells, on, put

GAINS = {  # of the third row more with every seed
    "toy": [(PAPER, -6.0, 0.0), (PAPER_ALONE, 0.5, 0.0), (PRIOR, 2.0, 0.1)],
    "toy-fog": [(PAPER, -4.0, 0.0), (PAPER_ALONE, -1.0, 0.0), (PRIOR, 3.0, 0.1)],
}


@pytest.fixture
def options(tmp_path) -> TargetsOptions:
    """Three seeds of two targets; of a third one there is nothing."""
    for data, gains in GAINS.items():
        where = replace(on(data, tmp_path, "recipes"), split="test")
        for seed in range(3):
            put(where, DAFORMER, seed, 40.0 + seed)
            for row, gain, more in gains:
                put(where, row, seed, 40.0 + seed + gain + more * seed)
        put(where, PRIOR_SCALED, 1, 44.0)
        put(where, SCALED_ALONE, 1, 43.0)
    return TargetsOptions(results=tmp_path / "results")


def test_gains_stand_side_by_side(options):
    text = targets.by_target(targets.collected(options), "test")
    assert cells(text, "DAFormer, mIoU")[1:] == ["41.00 (3 seeds)"] * 2
    head = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert head == ["", "toy-cityscapes, from scratch", "toy-fog, from scratch"]
    assert [cell.partition(" ")[0] for cell in cells(text, PAPER.label)[1:]] == ["**-6.00**", "**-4.00**"]
    assert cells(text, PRIOR.label)[1:] == ["**+2.10** [+1.85, +2.35]", "**+3.10** [+2.85, +3.35]"]
    adds = cells(text, f"{PRIOR.label}: what L_ins adds")
    assert [cell.partition(" ")[0] for cell in adds[1:]] == ["**+1.60**", "**+4.10**"]
    assert cells(text, PRIOR_SCALED.label)[1:] == ["+3.00 (one seed)"] * 2
    assert cells(text, f"{PRIOR_SCALED.label}: what L_ins adds")[1:] == ["+1.00 (one seed)"] * 2


def test_it_is_written_beside_the_records_and_into_its_block(options, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:targets -->\nold\n<!-- /results -->\nafter\n")
    targets_command(["--results", str(options.results), "--pages", str(page)])
    text = (options.results / "targets.md").read_text()
    assert page.read_text() == f"before\n<!-- results:targets -->\n{text}<!-- /results -->\nafter\n"
    with pytest.raises(SystemExit, match=r"bench.tables.targets: no record of toy or .* on val for seeds 0-7"):
        targets_command(["--results", str(options.results), "--split", "val"])
