"""Rows and their options, what counts as finished, which records a table shows, and what is rendered."""

import csv
import dataclasses
import json

import pytest

from bench.record import UNKNOWN, replaced
from bench.tables import __main__ as tables
from bench.tables.__main__ import TablesOptions
from bench.tables.comparison import collect, rows_of
from bench.tables.render import as_csv, page, section, summary
from bench.tables.rows import BENCHMARKS, DACS, DAFORMER, DIDA, ORACLE, SOURCE_ONLY, TABLES, WARM
from bench.tables.trainings import Scoring, Setting, Training, minutes, plan
from dida.data.classes import CITYSCAPES_CLASSES


@pytest.fixture
def setting(tmp_path) -> Setting:
    return tables.setting(TablesOptions(split="test", work=tmp_path / "runs", results=tmp_path / "results"), "methods")


def real(name: str, tmp_path) -> Setting:
    return on("real", tmp_path, name)


def on(data: str, tmp_path, table: str = "methods") -> Setting:
    return tables.setting(TablesOptions(data=data, work=tmp_path / "runs", results=tmp_path / "results"), table)


def put(setting: Setting, row, seed: int, mean: float, **changes) -> Scoring:
    """A record as a finished run leaves it; every class has the same IoU, unless said otherwise."""
    scoring = Scoring(Training(setting, row, seed))
    iou = dict.fromkeys(CITYSCAPES_CLASSES.names, mean) | changes.pop("iou", {})
    scores = {"mIoU": {"19": mean, "16": mean, "13": mean}, "IoU": iou} | changes.pop("scores", {})
    scored = {"device": "cpu", "cpu": "Some CPU", "torch": "2.13", "date": changes.pop("date", "2026-01-01 00:00 UTC")}
    content = {
        "row": row.name, "seed": seed, "images": 100, "minutes": 30.0, "commit": "abc123", "digest": setting.digest,
        "environment": {"trained": {"threads": 1}, "scored": scored}, "options": scoring.training.options,
        "student": scores, "teacher": scores,
    }  # fmt: skip
    scoring.path.parent.mkdir(parents=True, exist_ok=True)
    scoring.path.write_text(json.dumps(content | changes))
    return scoring


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", list(BENCHMARKS))
def test_every_row_of_every_table_is_a_command_line_that_train_takes(setting, tmp_path, benchmark):
    papers = {"gta5": "1", "synthia": "2"}
    where = real(papers[benchmark], tmp_path) if benchmark in papers else on(benchmark, tmp_path)
    assert where.name == benchmark
    for row in (row for name in TABLES for row in rows_of(name, where)):
        options = Training(where, row, 0).options
        for name, value in row.options.items():
            assert options[name] == value, row.name


def test_a_name_stands_for_one_set_of_options():
    rows = [row for table in TABLES.values() for row in table.rows] + [WARM]
    for row in rows:
        assert {str(dict(other.options)) for other in rows if other.name == row.name} == {str(dict(row.options))}


def test_all_alternatives_of_the_paper_are_there():
    def values(table: str, option: str) -> set:
        return {row.options[option] for row in TABLES[table].rows if option in row.options}

    assert values("3", "sampling") == {"nu", "rs", "ils", "cbs"}
    assert values("3", "selecting") == {"rs", "avg", "km", "bps"}
    assert values("4", "phi") == {0, 0.8, 0.9, 0.95, 1}
    assert len(TABLES["5"].rows) == 4
    assert values("6", "bank_momentum") == {0, 0.9, 0.99, 0.999, 1}
    assert len(TABLES["7"].rows) == 5
    assert values("8a", "bank_size") == {50, 100, 200, 300, 500, 1000, 10_000}
    assert values("8b", "bank_every") == {25, 50, 100, 200, 500}
    methods = [row.options["method"] for row in TABLES["methods"].rows]
    assert methods == ["source", "source", "dacs", "daformer", "dida", "oracle"]
    assert values("methods", "source_colour") == {"plain", "distort"}


def test_real_data_has_the_papers_schedule_and_no_warm_start(tmp_path):
    training = Training(real("7", tmp_path), DIDA, 0)
    assert training.warm is None
    command = training.command()
    assert command[2].endswith("train.py")
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert (given["--src"], given["--tgt"], given["--steps"], given["--seed"]) == ("gta5", "cityscapes", "40000", "0")
    assert "--init" not in given
    assert Training(real("2", tmp_path), DIDA, 0).options["src"] == "synthia"
    assert Training(real("2", tmp_path), ORACLE, 0).options["src"] == "cityscapes"
    assert Training(real("2", tmp_path), DIDA, 0).options["src_size"] == "1280x760"


def test_on_the_toy_rows_branch_off_one_start_and_the_oracle_takes_as_many_steps(setting):
    warm = {Training(setting, row, 3).warm.folder for row in (SOURCE_ONLY, DACS, DAFORMER, DIDA)}
    assert len(warm) == 1
    assert Training(setting, SOURCE_ONLY, 4).warm.folder not in warm
    assert Training(setting, ORACLE, 3).warm is None
    steps = {row.name: Training(setting, row, 3).options["steps"] for row in (WARM, SOURCE_ONLY, DIDA, ORACLE)}
    assert steps["source"] == steps["dida"]
    assert steps["oracle"] == steps["warm"] + steps["dida"]


def test_other_targets_branch_off_the_toys_own_start(setting, tmp_path):
    start = Training(setting, DIDA, 0).warm
    for data, target in (("toy-night", "toy-night"), ("toy-fog", "toy-fog")):
        training = Training(on(data, tmp_path), DIDA, 0)
        assert training.options["tgt"] == target
        assert Scoring(training).path.parts[-4] == data
        assert training.warm.folder == start.folder
        assert Scoring(training.warm).path == Scoring(start).path
    pretrained = Training(on("toy-pretrained", tmp_path), DIDA, 0)
    assert pretrained.warm.folder != start.folder
    for stage in (pretrained, pretrained.warm, Training(on("toy-pretrained", tmp_path), ORACLE, 0)):
        assert stage.options["backbone"] == "tf_efficientnet_lite0"


def test_rows_of_equal_options_share_a_run(setting):
    first = next(row for row in TABLES["5"].rows if row.name == "dida_regenerate-smooth-scale")
    assert Training(setting, first, 0).folder == Training(setting, DIDA, 0).folder
    assert Training(setting, first, 1).folder != Training(setting, DIDA, 0).folder
    names = [task.name for task in plan([(setting, first), (setting, DIDA), (setting, first)], [0])]
    assert len(names) == len(set(names)) == 5  # two trainings, and one scoring for each of warm start and rows


def test_what_rows_are_compared_with_stands_in_front_where_no_row_is_it(setting):
    odd = dataclasses.replace(setting, extra="--bank-size 77")
    assert rows_of("8b", odd)[0] in (DIDA, *TABLES["8b"].rows)
    assert rows_of("6", dataclasses.replace(setting, extra="--bank-momentum 0.7"))[0] == DIDA
    assert DIDA not in rows_of("6", setting)
    assert rows_of("regeneration", setting)[:5] == (DAFORMER, *TABLES["5"].rows)


# ---- what counts as finished ---------------------------------------------------------------------------------------


def test_a_record_counts_while_its_options_are_those_of_the_recipes(setting):
    scoring = put(setting, DIDA, 0, 50.0)
    assert scoring.done()
    options = scoring.training.options
    for changed in (options | {"lr": 7.0}, options | {"warm_start": options["warm_start"] | {"lr": 7.0}}):
        put(setting, DIDA, 0, 50.0, options=changed)
        assert not scoring.done()
    assert not Scoring(Training(dataclasses.replace(setting, extra="--lr 7"), DIDA, 0)).done()


def test_options_of_the_bank_mean_nothing_where_there_is_none(setting):
    changed = dataclasses.replace(setting, extra="--bank-size 50 --phi 0.5")
    assert Training(changed, DAFORMER, 0).folder == Training(setting, DAFORMER, 0).folder
    assert Training(changed, DIDA, 0).folder != Training(setting, DIDA, 0).folder
    unfed = {"method": "dida", "selecting": "off", "bank_init": "random"}  # its bank is there all the same
    unfed = dataclasses.replace(DIDA, options=unfed)
    assert Training(changed, unfed, 0).folder != Training(setting, unfed, 0).folder


def test_another_source_has_other_records_and_other_runs(setting):
    changed = dataclasses.replace(setting, digest="f00d" * 4)
    put(setting, DIDA, 0, 50.0)
    assert not Scoring(Training(changed, DIDA, 0)).done()
    assert Training(changed, DIDA, 0).folder != Training(setting, DIDA, 0).folder
    assert Training(changed, DIDA, 0).warm.folder != Training(setting, DIDA, 0).warm.folder


def test_a_record_of_another_source_is_shown_if_it_has_the_rows_options(setting):
    """What the recipes were then this tree does not know."""
    older = dataclasses.replace(setting, digest="f00d" * 4)
    row = TABLES["8a"].rows[0]
    then = Training(setting, row, 0).options | {"lr": 7.0, "gone": True}
    assert put(older, row, 0, 50.0, options=then).record()["student"]["IoU"]["road"] == 50.0
    assert put(older, row, 0, 50.0, options=then | {"bank_size": 1}).record() is None
    # An option that is newer than the record was at its default.
    older_still = {name: value for name, value in Training(setting, WARM, 0).options.items() if name != "source_colour"}
    assert put(older, WARM, 0, 50.0, options=older_still).record() is not None
    assert put(older, SOURCE_ONLY, 0, 50.0, options=older_still).record() is None


def test_training_time_is_that_of_steps_however_often_it_was_interrupted(tmp_path):
    lines = [{"step": 20, "steps_per_second": 2.0}, {"step": 50, "steps_per_second": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert minutes(tmp_path) == pytest.approx((20 / 2 + 30 / 1) / 60)


# ---- command line --------------------------------------------------------------------------------------------------


def test_seeds():
    assert tables.parse_seeds("0-2,7") == (0, 1, 2, 7)
    assert tables.parse_seeds("100") == (100,)
    for wrong in ("", "a", "1-", "3-x"):
        with pytest.raises(ValueError, match="--seeds"):
            tables.parse_seeds(wrong)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--rows", "ddia"], "the rows are"),
        (["--data", "real", "--split", "test"], "not public"),
        (["--render"], "no record of table methods"),
        (["--seeds", "x"], "--seeds"),
    ],
)
def test_what_a_user_can_put_right_is_one_message(tmp_path, args, message):
    with pytest.raises(SystemExit, match=message):
        tables.tables_command([*args, "--results", str(tmp_path), "--work", str(tmp_path)])


# ---- rendering -----------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(setting) -> Setting:
    """Three seeds: DACS gains 1 to 1.2 on source-only, DAFormer 1, 2 and 3 on DACS; no DIDA yet."""
    for seed, base, gain, unsure in ((0, 30.0, 1.0, 1.0), (1, 50.0, 1.2, 2.0), (2, 70.0, 1.1, 3.0)):
        put(setting, SOURCE_ONLY, seed, base)
        put(setting, DACS, seed, base + gain)
        put(setting, DAFORMER, seed, base + gain + unsure, iou={"truck": 10.0, "bus": 30.0, "train": None})
        put(setting, WARM, seed, 80.0)
    return setting


def cells(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_says_what_is_resolved_and_what_is_not(measured):
    text = summary(collect("methods", measured, range(8)))
    assert cells(text, "source only, colours distorted")[1:5] == ["50.00 ± 20.00", "–", "–", "–"]
    assert cells(text, "DACS")[1:5] == ["51.10 ± 20.05", "+1.10 [+0.85, +1.35]", "3/3", "yes"]
    assert cells(text, "DAFormer")[2:5] == ["+2.00 [-0.48, +4.48]", "3/3", "not resolved"]
    assert cells(text, "DIDA")[1:7] == ["–", "–", "–", "–", "–", "0"]
    assert cells(text, "DIDA")[7] == "71.0"


def test_the_table_says_what_it_is_a_table_of(measured):
    text = summary(collect("methods", measured, range(8)))
    for part in (
        "Toy numbers", "not to be compared", "19 classes", "test (100 images)", "student of the last checkpoint",
        "3 seeds (0-2)", "80.00 ± 0.00 on other pictures of its own source",
        f"Commit abc123; source {measured.digest}.", "Some CPU, 1 thread", "over seeds on one data set",
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
    put(measured, SOURCE_ONLY, 100, 99.0)
    assert cells(summary(collect("methods", measured, [0])), "DACS")[2:5] == ["+1.00", "1/1", "not resolved (one seed)"]
    assert "99" not in summary(collect("methods", measured, range(8)))


def test_the_boundary_band_stands_beside_the_groups_where_a_record_has_it(measured):
    for seed, mean in ((0, 20.0), (1, 21.0)):
        put(measured, DIDA, seed, 40.0, scores={"band": {"mIoU": {"19": mean, "16": 1.0, "13": 1.0}}})
    found = collect("methods", measured, range(8))
    line = cells(page(found), "boundary band, mIoU 19")
    assert line[1:] == ["–", "–", "–", "–", "20.5", "–"]  # the other rows were scored before there was a band
    assert "within 3 pixels of another class" in page(found)
    assert list(found.quantities).index("boundary band, mIoU 19") == list(found.quantities).index("road") - 1
    rows = [row for row in csv.DictReader(as_csv(found).splitlines()) if row["quantity"] == "boundary band, mIoU 19"]
    assert {(row["row"], row["mean"], row["seeds"]) for row in rows} == {("dida", "20.5", "2")}


def test_records_of_other_options_are_named_and_not_shown(measured):
    put(measured, DIDA, 0, 99.0, options=Training(measured, DIDA, 0).options | {"lr": 7.0})
    text = summary(collect("methods", measured, range(8)))
    assert "99" not in text
    assert "no longer those of the recipes: dida_s0_test." in text


def test_an_ablation_is_compared_with_dida(setting):
    setting = dataclasses.replace(setting, extra="--phi 0.9")  # one of the rows is DIDA, as in the paper
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
    put(where, DIDA, 0, 60.0)
    text = page(collect("methods", where, [0]))
    assert "Toy" not in text
    assert "mIoU over 16 classes" in text
    assert cells(text, "road")[-1] == "90.6"
    assert cells(text, "DIDA")[-1] == "63.3"


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


def test_a_split_for_choices_stays_out_of_the_pages(measured, tmp_path):
    choosing = dataclasses.replace(measured, split="val")
    put(choosing, DIDA, 100, 40.0)
    args = ["--render", "--results", str(measured.results), "--pages", str(tmp_path / "none.md"), "--seeds", "100"]
    with pytest.raises(SystemExit, match="0"):
        tables.tables_command(args)
    assert (measured.results / "toy" / "methods_val.md").exists()
    assert not (measured.results / "toy" / "methods.md").exists()


# ---- which source a table shows ------------------------------------------------------------------------------------

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
