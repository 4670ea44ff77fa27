"""What is rendered from records, and where to."""

import csv
import dataclasses

import pytest
import torch

from bench.record import replaced
from bench.tables import __main__ as tables
from bench.tables.comparison import collect
from bench.tables.render import as_csv, page, summary
from bench.tables.rows import DAFORMER, DIDA, PAPER, SOURCE_ONLY, TABLES
from bench.tables.trainings import Training
from dida.data.classes import CITYSCAPES_CLASSES
from tests.bench.tables.records import cells, put, real


def test_the_table_says_what_is_resolved_and_what_is_not(measured):
    text = summary(collect("methods", measured, range(8)))
    assert cells(text, "source only, colours distorted")[1:5] == ["50.00 ± 20.00", "–", "–", "–"]
    assert cells(text, "DACS")[1:5] == ["51.10 ± 20.05", "+1.10 [+0.85, +1.35]", "3/3", "yes"]
    assert cells(text, "DAFormer")[2:5] == ["+2.00 [-0.48, +4.48]", "3/3", "not resolved"]
    assert cells(text, "DIDA, as printed")[1:7] == ["–", "–", "–", "–", "–", "0"]
    assert cells(text, "DIDA, as printed")[7] == "71.0"


def test_the_table_says_what_it_is_a_table_of(measured):
    text = summary(collect("methods", measured, range(8)))
    for part in (
        "Toy numbers", "not to be compared", "19 classes", "test (100 images)", "student of the last checkpoint",
        "3 seeds (0-2)", "80.00 ± 0.00 on other pictures of its own source",
        f"Commit abc123; source {measured.digest}.", f"Some CPU, {torch.get_num_threads()} thread",
        "over seeds on one data set",
        "one in twenty leaves 0 out by chance",
        "6.0 hours", "paper, real data (GTA5)",
    ):  # fmt: skip
        assert part in text


def test_classes_and_groups_are_paired_as_well(measured):
    text = page(collect("methods", measured, range(8)))
    assert cells(text, "truck/bus")[4] == "20.0 (-31.1 ± 49.8)"
    assert cells(text, "rare")[3] == "51.1 (**+1.1 ± 0.2**)"
    assert cells(text, "train")[4] == "–"
    assert [line for line in text.splitlines() if line.startswith("| bicycle ")]


def test_seeds_that_were_not_asked_for_do_not_count(measured):
    before = summary(collect("methods", measured, range(8)))
    put(measured, SOURCE_ONLY, 100, 99.0)
    assert summary(collect("methods", measured, range(8))) == before
    assert cells(summary(collect("methods", measured, [0])), "DACS")[2:5] == ["+1.00", "1/1", "not resolved (one seed)"]


def test_the_boundary_band_stands_beside_the_groups_where_a_record_has_it(measured):
    for seed, mean in ((0, 20.0), (1, 21.0)):
        put(measured, PAPER, seed, 40.0, scores={"band": {"mIoU": {"19": mean, "16": 1.0, "13": 1.0}}})
    found = collect("methods", measured, range(8))
    line = cells(page(found), "boundary band, mIoU 19")
    assert line[1:] == ["–", "–", "–", "–", "20.5", "–", "–"]  # the other rows were scored before there was a band
    assert "within 3 pixels of another class" in page(found)
    assert list(found.quantities).index("boundary band, mIoU 19") == list(found.quantities).index("road") - 1
    rows = [row for row in csv.DictReader(as_csv(found).splitlines()) if row["quantity"] == "boundary band, mIoU 19"]
    assert {(row["row"], row["mean"], row["seeds"]) for row in rows} == {("dida_recipe-paper", "20.5", "2")}


def test_records_of_other_options_are_named_and_not_shown(measured):
    of_the_other_seed = cells(summary(collect("methods", measured, [1])), "DIDA, as printed")[1]
    put(measured, PAPER, 0, 99.0, options=Training(measured, PAPER, 0).options | {"lr": 7.0})
    text = summary(collect("methods", measured, range(8)))
    assert cells(text, "DIDA, as printed")[1] == of_the_other_seed
    assert "no longer those of the recipes: dida_recipe-paper_s0_test." in text


def test_an_ablation_is_compared_with_dida(setting):
    setting = dataclasses.replace(setting, extra="--recipe paper")  # one of the rows is DIDA
    for phi, mean in ((0.8, 49.0), (0.9, 50.0), (1, 51.5)):
        for seed in range(2):
            put(setting, next(row for row in TABLES["4"].rows if row.options["phi"] == phi), seed, mean + seed)
    text = summary(collect("4", setting, range(8)))
    assert cells(text, "φ = 0.9")[1:3] == ["50.50 ± 0.71", "–"]
    assert cells(text, "φ = 1")[2:5] == ["+1.50 [+1.50, +1.50]", "2/2", "yes"]
    assert cells(text, "φ = 0.8")[3] == "0/2"
    assert [cells(text, f"φ = {phi}")[-1] for phi in (0, 0.8, 0.9, 0.95, 1)] == ["–", "70.2", "71.0", "70.3", "69.0"]
    assert "prints “fail” at φ = 0" in text


def test_what_regeneration_adds_is_compared_with_daformer(setting):
    for seed in range(2):
        put(setting, DAFORMER, seed, 50.0 + seed)
        put(setting, TABLES["5"].rows[2], seed, 51.5 + seed)
    found = collect("regeneration", setting, range(8))
    assert cells(summary(found), "DAFormer")[2] == "–"
    assert cells(summary(found), "ẑ scaling, q̂ smoothing")[2:5] == ["+1.50 [+1.50, +1.50]", "2/2", "yes"]
    assert "differences are to DAFormer as the recipe has it" in summary(found)


def test_real_tables_have_the_papers_classes_beside_ours(tmp_path):
    where = real("2", tmp_path)
    put(where, PAPER, 0, 60.0)
    text = page(collect("methods", where, [0]))
    assert "Toy" not in text
    assert "mIoU over 16 classes" in text
    assert cells(text, "road")[-1] == "90.6"
    assert cells(text, "DIDA, as printed")[-1] == "63.3"


def test_the_csv_has_every_quantity_of_both_networks(measured):
    rows = list(csv.DictReader(as_csv(collect("methods", measured, range(8))).splitlines()))
    dacs = {(row["network"], row["quantity"]): row for row in rows if row["row"] == "dacs"}
    assert {network for network, _ in dacs} == {"student", "teacher"}
    wanted = {"mIoU 19", "mIoU 16", "mIoU 13", "rare", "truck/bus", *CITYSCAPES_CLASSES.names}
    assert {quantity for _, quantity in dacs} >= wanted
    line = dacs["student", "mIoU 19"]
    assert (line["mean"], line["against"], line["resolved"], line["seeds_above"]) == ("51.1", "source", "yes", "3")
    assert line["paper_real_data"] == "52.1"
    assert dacs["teacher", "mIoU 19"]["paper_real_data"] == ""


def test_rendering_writes_files_and_the_blocks_of_pages_alone(measured, tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results.md"
    other = "<!-- results:toy-3 -->\nkept\n<!-- /results -->\nafter\n"
    block = "<!-- results:toy-methods -->\nold\n<!-- /results -->\n"
    readme.write_text(f"before\n{block}{other}")
    results.write_text(f"<!-- results:toy-caption -->\n<!-- /results -->\n{block}{other}")
    pages = [str(path) for path in (readme, results, tmp_path / "none.md")]
    args = ["--render", "--results", str(measured.results), "--pages", *pages]
    for _ in range(2):  # rendering again changes nothing
        with pytest.raises(SystemExit, match="0"):
            tables.tables_command([*args, "--split", "test"])
        assert readme.read_text().startswith("before\n<!-- results:toy-methods -->\n### Methods")
        assert results.read_text().startswith("<!-- results:toy-caption -->\n**Toy numbers**")
        for text in (readme.read_text(), results.read_text()):
            assert text.endswith(f"<!-- /results -->\n{other}")
            assert "\nold\n" not in text
            assert text.count("### Methods") == text.count("Toy numbers") == 1
    assert (measured.results / "toy" / "methods.md").read_text().startswith("### Methods")
    assert (measured.results / "toy" / "methods.csv").exists()


def test_a_page_without_a_place_for_the_table_is_named(measured, tmp_path):
    page_of_ours = tmp_path / "page.md"
    page_of_ours.write_text("nothing")
    args = ["--render", "--split", "test", "--results", str(measured.results), "--pages", str(page_of_ours)]
    with pytest.raises(SystemExit, match=r"page\.md: no line <!-- results:toy-methods -->"):
        tables.tables_command(args)
    page_of_ours.write_text("<!-- results:toy-methods -->\nno end")
    with pytest.raises(SystemExit, match=r"page\.md: expected a line <!-- /results -->"):
        tables.tables_command(args)


def test_a_split_for_choices_has_blocks_of_its_own_and_needs_none(measured, tmp_path):
    choosing = dataclasses.replace(measured, split="val")
    put(choosing, PAPER, 100, 40.0)
    reported, chosen = tmp_path / "reported.md", tmp_path / "chosen.md"
    reported.write_text("<!-- results:toy-methods -->\nkept\n<!-- /results -->\n")
    chosen.write_text(
        "<!-- results:toy-caption -->\nkept\n<!-- /results -->\n<!-- results:toy-methods_val -->\n<!-- /results -->\n"
    )
    pages = [str(path) for path in (reported, chosen, tmp_path / "none.md")]
    args = ["--render", "--results", str(measured.results), "--pages", *pages, "--seeds", "100"]
    with pytest.raises(SystemExit, match="0"):
        tables.tables_command(args)
    assert "\nkept\n" in reported.read_text()
    assert "\nkept\n" in chosen.read_text()
    assert "### Methods (Tables I and II)" in chosen.read_text()
    assert (measured.results / "toy" / "methods_val.md").exists()
    assert not (measured.results / "toy" / "methods.md").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("nothing", "expected one line <!-- results:toy-methods -->, found 0"),
        ("<!-- results:toy-methods -->\n" * 2, "found 2"),
        ("<!-- results:toy-methods -->\nno end", "expected a line <!-- /results -->"),
        (
            "<!-- results:toy-methods -->\n<!-- results:toy-3 -->\n<!-- /results -->",
            "expected a line <!-- /results -->",
        ),
    ],
)
def test_a_missing_marker_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        replaced(text, "toy-methods", "block")


def test_a_sweep_is_drawn(setting, tmp_path):
    pytest.importorskip("matplotlib")
    for row in (DIDA, *TABLES["8b"].rows[:3]):
        for seed in range(2):
            put(setting, row, seed, 40.0 + row.options.get("bank_every", 0) / 100 + seed)
    tables.write_table(collect("8b", setting, (0, 1)), ())
    assert (setting.results / "toy" / "8b.png").stat().st_size > 5000
    assert "![the curve](8b.png)" in (setting.results / "toy" / "8b.md").read_text()
