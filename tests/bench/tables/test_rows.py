"""Rows are command lines, those of a name are one, and each branches off what it should."""

import dataclasses

import pytest

from bench.tables.__main__ import chosen
from bench.tables.comparison import collect, rows_of
from bench.tables.rows import BENCHMARKS, DACS, DAFORMER, DIDA, ORACLE, PAPER, SOURCE_ONLY, TABLES, WARM
from bench.tables.trainings import Scoring, Training, plan
from dida.recipes import RECIPES
from tests.bench.tables.records import on, put, real


@pytest.mark.parametrize("benchmark", list(BENCHMARKS))
def test_every_row_of_every_table_is_a_command_line_that_train_takes(setting, tmp_path, benchmark):
    papers = {"gta5": "1", "synthia": "2"}
    where = real(papers[benchmark], tmp_path) if benchmark in papers else on(benchmark, tmp_path)
    assert where.name == benchmark
    names = TABLES if benchmark in ("toy", "gta5") else ("methods",)  # options of a row are no matter of its data
    for row in (row for name in names for row in rows_of(name, where) if not row.gone):
        options = Training(where, row, 0).options
        for name, value in row.options.items():
            assert options[name] == value, row.name


def test_a_name_stands_for_one_set_of_options():
    rows = [row for table in TABLES.values() for row in table.rows] + [WARM]
    for row in rows:
        assert {str(dict(other.options)) for other in rows if other.name == row.name} == {str(dict(row.options))}


@pytest.mark.parametrize("name", ["candidates", "combinations", "finalists", "recipes"])
def test_rows_to_choose_between_mean_the_same_whatever_the_recipe_is_now(setting, name):
    """A choice becomes the recipe, and what it was chosen from must not change with it."""
    rows = [row for row in TABLES[name].rows if not row.gone]
    under = [
        [matter(Training(dataclasses.replace(setting, extra=f"--recipe {recipe}"), row, 0).options) for row in rows]
        for recipe in RECIPES
    ]
    assert all(options == under[0] for options in under)
    assert len({str(options) for options in under[0]}) == len(rows)  # and no two are one


def matter(options: dict) -> dict:
    """A branch's options less the recipe's name and those that another option leaves without effect."""
    unused = {"recipe", "warm_start", *(["phi"] if options["regenerate_semantic"] != "smooth" else [])}
    if options["instance_loss"] == "off":
        unused |= {"instance_weight", "instance_weights", "instance_prior", "regenerate_instance", "instance_phi"}
    return {name: value for name, value in options.items() if name not in unused}


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
    assert methods == ["source", "source", "dacs", "daformer", "dida", "dida", "oracle"]
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
    of_dida = Training(setting, DIDA, 0)
    first = next(row for row in TABLES["5"].rows if Training(setting, row, 0).options == of_dida.options)
    assert Training(setting, first, 0).folder == of_dida.folder
    assert Training(setting, first, 1).folder != Training(setting, DIDA, 0).folder
    names = [task.name for task in plan([(setting, first), (setting, DIDA), (setting, first)], [0])]
    assert len(names) == len(set(names)) == 5  # two trainings, and one scoring for each of warm start and rows


def test_what_rows_are_compared_with_stands_in_front_where_no_row_is_it(setting):
    odd = dataclasses.replace(setting, extra="--bank-size 77")
    assert rows_of("8b", odd)[0] in (DIDA, *TABLES["8b"].rows)
    assert rows_of("6", dataclasses.replace(setting, extra="--bank-momentum 0.7"))[0] == DIDA
    assert DIDA not in rows_of("6", setting)
    assert rows_of("regeneration", setting)[:5] == (DAFORMER, *TABLES["5"].rows)


def test_a_row_that_is_told_labels_is_another_training(setting):
    told = next(row for row in TABLES["limits"].rows if row.told == "semantic")
    training, plain = Training(setting, told, 0), Training(setting, DAFORMER, 0)
    assert (training.arguments, training.warm.folder) == (plain.arguments, plain.warm.folder)
    assert training.folder != plain.folder
    assert training.command()[2:5] == ["-m", "bench.told", "semantic"]
    assert Scoring(training).path != Scoring(plain).path
    put(setting, told, 0, 50.0, options=plain.options)
    assert not Scoring(training).done()


def test_a_row_whose_options_are_gone_is_shown_and_not_run(setting):
    row = next(row for row in TABLES["candidates"].rows if row.name == "dida_candidate-projection")
    wanted = [(setting, row) for row in rows_of("candidates", setting)]
    assert row in [row for _, row in wanted]
    assert row not in [row for _, row in chosen(wanted, ())]
    with pytest.raises(ValueError, match=f"--rows {row.name}: its options are gone; commit 0be0dde24098 is the last"):
        chosen(wanted, (DAFORMER.name, row.name))


def test_a_seed_that_another_kind_of_machine_began_is_refused(setting):
    put(setting, DAFORMER, 3, 50.0, trained={"cpu": "Another CPU"})
    wanted = [(setting, DAFORMER), (setting, DIDA)]
    with pytest.raises(
        ValueError, match=r"daformer_s3_test.json: trained on Another CPU, and this is .* other --seeds"
    ):
        plan(wanted, [2, 3])
    assert plan(wanted, [2])
    put(setting, DIDA, 3, 51.0, trained={"cpu": "Another CPU"})
    put(setting, WARM, 3, 52.0, trained={"cpu": "Another CPU"})
    assert plan(wanted, [3]) == []  # all is there, from one machine


def test_rows_of_a_seed_are_compared_where_one_kind_of_machine_trained_both(setting):
    for row, seed, mean, cpu in [
        (DAFORMER, 0, 50.0, "A"), (PAPER, 0, 51.0, "A"), (DAFORMER, 1, 50.0, "A"), (PAPER, 1, 57.0, "B"),
        (DAFORMER, 2, 50.0, "B"), (PAPER, 2, 52.0, "B"),
    ]:  # fmt: skip
        put(setting, row, seed, mean, trained={"cpu": cpu})
    line = next(line for line in collect("methods", setting, range(3)).lines if line.row.name == PAPER.name)
    difference = line.difference(lambda scores: scores["mIoU"]["19"])
    assert (difference.mean, difference.n) == (1.5, 2)
