"""Which source a table shows, and what it compares with what."""

import csv
import dataclasses

import pytest

from bench.record import UNKNOWN
from bench.tables.comparison import collect
from bench.tables.render import as_csv, page, section, summary
from bench.tables.rows import DAFORMER, PAPER, PRIOR, TABLES
from bench.tables.trainings import Setting
from tests.bench.tables.records import cells, put

OLD, NEW = "0" * 16, "1" * 16


def of_source(setting: Setting, digest: str, rows, seeds: int, more: float = 0.0, **changes) -> None:
    """Records of one source: 50 for seed 0, one more for each seed, and `more` for each row."""
    for i, row in enumerate(rows):
        for seed in range(seeds):
            put(dataclasses.replace(setting, digest=digest), row, seed, 50.0 + i * more + seed, **changes)


def shown(setting: Setting, digest: str | None = None) -> str:
    return section(collect("regeneration", setting, range(8), digest))


REGENERATIONS = (DAFORMER, *TABLES["regeneration"].rows)


def test_the_newest_source_that_knows_most_is_shown(setting):
    of_source(setting, OLD, REGENERATIONS, 3, date="2026-01-01 00:00 UTC", commit="0ld")
    of_source(setting, NEW, REGENERATIONS, 2, date="2026-01-02 00:00 UTC", commit="ne3")
    assert f"Commit 0ld; source {OLD}." in shown(setting)  # its trainings are not all there yet
    assert f"Commit ne3; source {NEW}." in shown(setting, NEW)
    of_source(setting, NEW, REGENERATIONS, 3, date="2026-01-02 00:00 UTC", commit="ne3")
    assert f"Commit ne3; source {NEW}." in shown(setting)
    assert f"Commit 0ld; source {OLD}." in shown(setting, OLD)
    with pytest.raises(ValueError, match=rf"--digest abc: .* of these: {OLD}, {NEW}"):
        shown(setting, "abc")


def test_where_no_source_has_every_row_the_one_with_most_records_is_shown(setting):
    of_source(setting, OLD, REGENERATIONS[:-1], 3, date="2026-01-01 00:00 UTC", commit="0ld")
    of_source(setting, NEW, REGENERATIONS[:2], 1, date="2026-01-02 00:00 UTC", commit="ne3")
    assert f"Commit 0ld; source {OLD}." in shown(setting)


def test_this_trees_source_needs_no_records(measured):
    elsewhere = dataclasses.replace(measured, digest="e" * 16)  # a tree that moved on
    assert summary(collect("methods", elsewhere, range(8))) == summary(collect("methods", measured, range(8)))


def test_a_row_of_another_source_says_so_and_is_compared_with_nothing(setting):
    of_source(setting, OLD, REGENERATIONS, 3, commit="0ld")
    reversed_rules = TABLES["5"].rows[2]
    of_source(setting, NEW, [row for row in REGENERATIONS if row != reversed_rules], 3, commit="ne3")
    text = shown(setting, NEW)
    assert cells(text, "ẑ scaling, q̂ smoothing †")[1:5] == ["51.00 ± 1.00", "not comparable", "–", "–"]
    assert cells(text, "ẑ scaling, q̂ scaling")[2:5] == ["+0.00 [+0.00, +0.00]", "0/3", "not resolved"]
    assert f"† Trained by another source, and so not comparable with the rest: commit 0ld; source {OLD}." in text
    assert f"Commit ne3; source {NEW}." in text
    found = collect("regeneration", setting, range(8), NEW)
    rows = [row for row in csv.DictReader(as_csv(found).splitlines()) if row["quantity"] == "mIoU 19"]
    assert {row["digest"]: row["difference"] for row in rows if row["row"] == reversed_rules.name} == {OLD: ""}
    assert "ẑ scaling, q̂ smoothing †" in page(found)


def test_rows_that_are_compared_with_a_row_of_another_source_are_not(setting):
    of_source(setting, OLD, [DAFORMER], 3)
    of_source(setting, NEW, REGENERATIONS[1:], 3)
    text = shown(setting, NEW)
    assert cells(text, "DAFormer †")[1:5] == ["51.00 ± 1.00", "–", "–", "–"]
    assert cells(text, "ẑ scaling, q̂ scaling")[2:5] == ["not comparable", "–", "–"]


def test_no_difference_of_an_unknown_source_is_resolved(setting):
    of_source(setting, UNKNOWN, REGENERATIONS, 3, more=1.0, commit="0ld+0lder+changes")
    text = shown(setting)
    assert cells(text, "ẑ scaling, q̂ scaling")[2:5] == ["+4.00 [+4.00, +4.00]", "3/3", "source unknown"]
    assert "Commit 0ld, 0lder with uncommitted changes; source unknown." in text
    found = collect("regeneration", setting, range(8))
    assert "**" not in page(found).partition("By class")[2].partition("|")[2]
    assert {row["resolved"] for row in csv.DictReader(as_csv(found).splitlines())} == {"no", ""}


def test_a_row_that_names_another_is_compared_with_it(setting):
    of_source(setting, OLD, [DAFORMER, PAPER, PRIOR], 2, more=3.0)
    text = summary(collect("methods", setting, range(2)))
    assert cells(text, "DIDA, as printed")[2] == "+3.00 [+3.00, +3.00]"
    assert cells(text, "DIDA, as advised: L_ins with a class prior")[2] == "+6.00 [+6.00, +6.00]"
    assert "differences are to the row above, of “DIDA, as advised: L_ins with a class prior” to DAFormer." in text


def test_what_the_loss_adds_is_compared_recipe_by_recipe(setting):
    of_source(setting, OLD, TABLES["loss"].rows, 2, more=1.5)
    lines = collect("loss", setting, range(2)).lines
    assert [line.against.row.name if line.against else None for line in lines] == [
        None, "dida_recipe-paper-alone", None, "dida_recipe-paper-alone", None, "dida_regenerate-scale-alone"
    ]  # fmt: skip
    assert [line.difference(lambda scores: scores["mIoU"]["19"]) is None for line in lines] == [True, False] * 3
