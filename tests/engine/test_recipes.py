"""The named sets of options, and what a command line makes of them."""

import json
from pathlib import Path

import pytest

from dida import recipes
from dida.config import Config, changed, flat, to_dict


def difference(a: Config, b: Config) -> set[str]:
    """Names of the options that two configs do not share."""
    a, b = flat(a), flat(b)
    return {name for name in a if a[name] != b[name]} - {"method"}


def test_methods_are_steps_of_one_another():
    dida, daformer, dacs, source = (recipes.METHODS[m](Config()) for m in ("dida", "daformer", "dacs", "source"))
    assert difference(dida, daformer) == {"instance_loss", "selecting", "regenerate_semantic"}
    assert difference(daformer, dacs) == {
        "rare_class_sampling", "feature_weight", "teacher_momentum", "ignore_top", "ignore_bottom"
    }  # fmt: skip
    assert difference(daformer, source) == {
        "self_training", "teacher_norm", "rare_class_sampling", "feature_weight", "source_colour"
    }  # fmt: skip
    assert difference(Config(), dida) == set()  # the paper is the default


def test_recipes_differ_in_the_instance_loss_alone():
    paper, advised = (recipes.RECIPES[name](recipes.toy(Config())) for name in ("paper", "advised"))
    assert (paper.recipe, advised.recipe) == ("paper", "advised")
    assert difference(paper, advised) == {"recipe", "instance_weight", "instance_weights", "instance_prior"}
    assert difference(recipes.paper(advised), paper) == difference(recipes.advised(paper), advised) == set()
    assert difference(recipes.paper(Config()), Config()) == set()
    assert difference(recipes.toy(Config()), advised) == set()


def test_a_recipe_is_asked_for_by_name():
    assert recipes.from_command_line(["--recipe", "advised"]).instance == recipes.advised(Config()).instance
    toy = recipes.from_command_line(["--src", "toy-gta5", "--recipe", "paper", "--instance-prior", "student"])
    assert (toy.instance.instance_weight, toy.instance.instance_weights) == (1.0, "all")
    assert (toy.instance.instance_prior, toy.instance.bank_size) == ("student", 190)


def test_methods_are_named_as_they_are_called():
    assert {name: recipe(Config()).method for name, recipe in recipes.METHODS.items()} == {
        name: name for name in recipes.METHODS
    }


@pytest.mark.parametrize("base", [Config(), recipes.toy(Config())], ids=["full", "toy"])
def test_only_supervised_training_distorts_colours(base):
    colours = {name: recipe(base).data.source_colour for name, recipe in recipes.METHODS.items()}
    assert colours == {
        "source": "distort", "oracle": "distort", "dacs": "plain", "daformer": "plain", "dida": "plain"
    }  # fmt: skip


@pytest.mark.parametrize("base", [Config(), recipes.toy(Config())], ids=["full", "toy"])
def test_dacs_has_a_faster_teacher_and_every_row_and_nobody_else(base):
    def rows_and_momentum(config: Config) -> tuple:
        return config.teach.ignore_top, config.teach.ignore_bottom, config.teach.teacher_momentum

    assert rows_and_momentum(recipes.dacs(base)) == (0, 0, 0.99)
    for other in (recipes.daformer, recipes.dida, recipes.source, recipes.oracle):
        assert rows_and_momentum(other(base)) == rows_and_momentum(base)
    assert base.teach.ignore_bottom > 0


def test_pixels_that_are_given_count_where_a_share_would():
    own = ["--src", "folder:x"]
    assert recipes.from_command_line(own).data.rare_class_share > 0
    given = recipes.from_command_line([*own, "--rare-class-pixels", "50"]).data
    assert (given.rare_class_pixels, given.rare_class_share) == (50, 0)
    both = recipes.from_command_line([*own, "--rare-class-pixels=50", "--rare-class-share", "0.1"]).data
    assert (both.rare_class_pixels, both.rare_class_share) == (50, 0.1)


def test_given_options_win_over_recipes():
    config = recipes.from_command_line(["--src=toy-gta5", "--method", "daformer", "--crop", "96", "--out", "x"])
    assert (config.data.tgt, config.data.crop, config.method, config.run.out) == (
        "toy-cityscapes", 96, "daformer", Path("x"),
    )  # fmt: skip
    plain = recipes.from_command_line(["--method", "source", "--source-colour", "plain"])
    assert plain.data.source_colour == "plain"
    slow = recipes.from_command_line(["--method", "dacs", "--teacher-momentum", "0.999"])
    assert slow.teach.teacher_momentum == 0.999


@pytest.mark.parametrize(
    "target, source",
    [
        ("toy-cityscapes", "toy-cityscapes-oracle"), ("toy-night", "toy-night-oracle"), ("acdc", "acdc"),
        ("toy-cityscapes-oracle", "toy-cityscapes-oracle"), ("toy-gta5", "toy-gta5"),
    ],
)  # fmt: skip
def test_the_oracle_of_a_toy_finds_its_labels(target, source):
    assert recipes.from_command_line(["--method", "oracle", "--tgt", target]).data.src == source


def test_the_oracle_learns_from_its_target():
    oracle = recipes.from_command_line(["--method", "oracle", "--tgt-size", "512x256"])
    assert (oracle.data.src, oracle.data.src_size) == ("cityscapes", "512x256")
    for target in ("toy-cityscapes", "toy-night"):
        toy = recipes.from_command_line(["--method", "oracle", "--tgt", target])
        assert toy.data.src == f"{target}-oracle"  # the toy's own target has no training labels
    own = recipes.from_command_line(["--method", "oracle", "--tgt", "folder:mine"])
    assert own.data.src == "folder:mine"


@pytest.mark.parametrize("args", [["--src", "toy-gta5"], ["--tgt", "toy-cityscapes"], ["--src=toy-gta5"]])
def test_either_domain_of_the_toy_brings_its_schedule(args):
    assert recipes.from_command_line(args) == recipes.dida(recipes.toy(Config()))


def test_src_size_of_synthia_keeps_the_whole_picture():
    assert recipes.from_command_line(["--src", "synthia"]).data.src_size == "1280x760"


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run, as far as its config."""
    (tmp_path / "config.json").write_text(json.dumps(to_dict(changed(Config(), phi=0.5, steps=2000))))
    return tmp_path


def test_a_resumed_run_takes_no_options_of_another(run):
    with pytest.raises(SystemExit, match=r"leave --config other out"):
        recipes.from_command_line(["--resume", str(run), "--config", "other"])


def test_a_resumed_run_has_its_own_options(run):
    config = recipes.from_command_line(["--resume", str(run), "--workers", "3"])
    assert config == changed(Config(), phi=0.5, steps=2000, resume=run, workers=3)


def test_a_run_can_be_extended_and_not_cut_short(run):
    longer = recipes.from_command_line(["--resume", str(run), "--steps", "3000"])
    assert longer == changed(Config(), phi=0.5, steps=3000, resume=run)  # warm-up and bank stay as they were
    with pytest.raises(SystemExit, match="steps cannot change"):
        recipes.from_command_line(["--resume", str(run), "--steps", "1999"])


def test_saved_options_are_a_start_that_the_command_line_changes(run):
    for saved in (run, run / "config.json"):
        config = recipes.from_command_line(["--config", str(saved), "--seed", "3"])
        assert config == changed(Config(), phi=0.5, steps=2000, seed=3, config=saved)
    scaled = recipes.from_command_line(["--config", str(run), "--steps", "4000"])
    assert (scaled.optim.steps, scaled.optim.warmup) == (4000, 3000)
    with pytest.raises(
        SystemExit, match=r"--method source is a set of options, and .* holds all options, those of dida"
    ):
        recipes.from_command_line(["--config", str(run), "--method", "source"])
    with pytest.raises(SystemExit, match=r"--config .*gone: no run folder"):
        recipes.from_command_line(["--config", str(run / "gone")])


@pytest.mark.parametrize("args", [["--phi", "0.7"], ["--method", "daformer"], ["--seed", "1"], ["--src", "synthia"]])
def test_what_would_make_another_run_of_it_cannot_change(run, args):
    with pytest.raises(SystemExit, match=f"{args[0][2:]} cannot change"):
        recipes.from_command_line(["--resume", str(run), *args])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no run folder, there is no config.json in it"),
        ("{", "--resume"),
        ("[]", "expected an object with the options of Config"),
        ('{"magic": 1}', r"unknown options \['magic'\]"),
        ('{"optim": {"steps": 0}}', "--steps: expected a number in"),
    ],
)
def test_what_cannot_be_resumed_is_said_in_one_message(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit, match=message) as ended:
        recipes.from_command_line(["--resume", str(tmp_path)])
    assert len(str(ended.value).splitlines()) == 1


# ---- what follows from the data and the steps ----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 20, 300, 1000, 5000])
@pytest.mark.parametrize("src", ["gta5", "toy-gta5", "folder:mine"])
@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_number_of_steps_alone_is_a_run_that_works(method, src, steps):
    args = ["--method", method, "--tgt", "toy-cityscapes" if src == "toy-gta5" else "cityscapes", "--steps", str(steps)]
    config = recipes.from_command_line(args if method == "oracle" else [*args, "--src", src])
    before = recipes.toy(Config()) if src == "toy-gta5" else Config()
    share = steps / before.optim.steps
    assert config.optim.warmup == round(before.optim.warmup * share) < steps
    assert 1 <= config.instance.bank_fill <= config.instance.bank_start < steps
    assert config.instance.bank_start == max(round(before.instance.bank_start * share), 1)


def test_what_is_given_beside_the_steps_holds():
    args = ["--steps", "400", "--warmup", "7", "--bank-start", "90", "--bank-fill", "11"]
    config = recipes.from_command_line(args)
    assert (config.optim.warmup, config.instance.bank_start, config.instance.bank_fill) == (7, 90, 11)
    assert recipes.from_command_line(["--steps", "40000"]) == recipes.dida(Config())


@pytest.mark.parametrize(
    "spelt, plain",
    [
        (["--steps", "20_000"], ["--steps", "20000"]),
        (["--steps=+20000"], ["--steps", "20000"]),
        (["--method", "oracle", "--tgt_size", "640x320"], ["--method", "oracle", "--tgt-size", "640x320"]),
    ],
)
def test_what_the_parser_takes_for_the_same_brings_the_same_defaults(spelt, plain):
    assert recipes.from_command_line(spelt) == recipes.from_command_line(plain)


@pytest.mark.parametrize("steps", ["0", "-3", "many", "9" * 5000, "1e3", "²"])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(SystemExit):
        recipes.from_command_line(["--steps", steps])


@pytest.mark.parametrize(
    "src, tgt, enlarge, rare, hood",
    [
        ("gta5", "cityscapes", True, 0.0, (15, 120)),
        ("gta5", "foggy-cityscapes", True, 0.0, (15, 120)),
        ("gta5", "acdc", True, 0.0, (0, 0)),
        ("gta5", "folder:mine", False, 0.0, (0, 0)),
        ("folder:mine", "cityscapes", False, 0.0015, (15, 120)),
        ("gta5+folder:mine", "folder:other", False, 0.0015, (0, 0)),
        ("loveda-urban", "loveda-rural", True, 0.0, (0, 0)),
        ("synthia", "mapillary", True, 0.0, (0, 0)),
    ],
)
def test_defaults_follow_the_data(src, tgt, enlarge, rare, hood):
    """The hood of the car is Cityscapes'; own pictures are not blown up, and rare is a share of them."""
    config = recipes.from_command_line(["--src", src, "--tgt", tgt])
    assert (config.data.enlarge, config.data.rare_class_share) == (enlarge, rare)
    assert (config.teach.ignore_top, config.teach.ignore_bottom) == hood
    given = recipes.from_command_line(["--src", src, "--tgt", tgt, "--ignore-bottom", "9", "--enlarge"])
    assert (given.teach.ignore_bottom, given.data.enlarge) == (9, True)
