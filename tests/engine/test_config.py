"""The command line: its options, recipes and errors."""

import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest

from dida import config as config_module
from dida import recipes
from dida.config import Config, InstanceConfig, SelfTrainingConfig, changed, flat, from_dict, parse_size, to_dict
from dida.method import discrimination, regeneration, sampling, teacher, views

ROOT = Path(__file__).parents[2]

OPTIONS = """
method resume check_data
src tgt data_root src_size tgt_size crop batch_size workers rare_class_sampling rare_class_temperature
rare_class_pixels rare_class_crop_share max_class_share
backbone weights init embed_dim drop_path
steps lr head_lr_factor weight_decay warmup
self_training teacher_momentum teacher_norm threshold pseudo_weight confidence ignore_top ignore_bottom mix_classes
jitter_chance jitter_strength blur_chance weak_view feature_weight
instance_loss instance_weight instance_pixels temperature regenerate_semantic regenerate_instance phi instance_phi
bank_size sampling selecting clusters boundary_classes bank_momentum bank_every bank_init bank_start bank_fill
seed device out log_every panel_every save_every
"""


def test_the_list_of_options_is_frozen():
    """An option more or less is a decision: change it here, and say why in the commit."""
    assert list(flat(Config())) == OPTIONS.split()
    assert len(flat(Config())) < 70


@pytest.mark.parametrize("recipe", [*recipes.METHODS.values(), recipes.toy])
def test_config_survives_json(recipe):
    config = recipe(Config())
    config = changed(config, out=Path("here"), init=Path("a/b"))
    assert from_dict(to_dict(config)) == config


def test_a_config_of_another_version_is_refused():
    with pytest.raises(ValueError, match=r"unknown options.*'bogus'.*another version"):
        from_dict(to_dict(Config()) | {"bogus": 1})


@pytest.mark.parametrize(
    "options, field, table",
    [
        (InstanceConfig, "instance_loss", discrimination.INSTANCE_LOSS),
        (InstanceConfig, "regenerate_semantic", regeneration.SEMANTIC),
        (InstanceConfig, "regenerate_instance", regeneration.INSTANCE),
        (InstanceConfig, "sampling", sampling.SLOTS),
        (InstanceConfig, "selecting", sampling.SELECTING | {"off": None}),
        (InstanceConfig, "instance_pixels", discrimination.INSTANCE_PIXELS),
        (SelfTrainingConfig, "pseudo_weight", teacher.PSEUDO_WEIGHTS),
        (SelfTrainingConfig, "weak_view", views.WEAK_VIEWS),
        (Config, "method", recipes.METHODS),
    ],
)
def test_choices_and_strategies_are_the_same(options, field, table):
    assert set(typing.get_args(typing.get_type_hints(options)[field])) == set(table)


def test_the_paper_is_the_default():
    """SPEC 8, 9.2 and the decisions of the design, in one place."""
    c = Config()
    assert (c.optim.steps, c.optim.lr, c.optim.weight_decay, c.optim.warmup) == (40_000, 6e-5, 0.01, 1500)
    assert (c.data.batch_size, c.data.crop, c.data.src_size, c.data.tgt_size) == (2, 512, "1280x720", "1024x512")
    assert (c.bank.bank_size, c.bank.bank_every, c.bank.bank_momentum) == (300, 50, 0.999)
    assert (c.bank.temperature, c.bank.phi, c.bank.instance_weight) == (0.1, 0.9, 1.0)
    assert (c.teach.teacher_momentum, c.teach.threshold, c.teach.feature_weight) == (0.999, 0.968, 0.005)


def test_methods_are_steps_of_one_another():
    dida, daformer, dacs, source = (flat(recipes.METHODS[m](Config())) for m in ("dida", "daformer", "dacs", "source"))

    def difference(a, b):
        return {k for k in a if a[k] != b[k]} - {"method"}

    assert difference(dida, daformer) == {"instance_loss", "selecting", "regenerate_semantic"}
    assert difference(daformer, dacs) == {"rare_class_sampling", "feature_weight"}
    assert difference(dacs, source) == {"self_training", "teacher_norm"}


def test_given_options_win_over_recipes():
    config = recipes.from_command_line(["--src=toy-gta5", "--method", "daformer", "--crop", "96", "--out", "x"])
    assert (config.data.tgt, config.data.crop, config.method, config.run.out) == (
        "toy-cityscapes", 96, "daformer", Path("x"),
    )  # fmt: skip
    assert recipes.from_command_line(["--method", "oracle"]).data.src == "cityscapes"


def test_src_size_of_synthia_keeps_the_whole_picture():
    assert recipes.from_command_line(["--src", "synthia"]).data.src_size == "1280x760"


@pytest.mark.parametrize(
    "args, message",
    [
        (["--crop", "0"], "--crop: expected a number above 0, got 0"),
        (["--phi", "1.5"], r"--phi: expected a number in \[0, 1\], got 1.5"),
        (["--src-size", "1280"], "--src-size: expected WIDTHxHEIGHT"),
        (["--ignore-bottom", "500"], "leave no row: they are 512ths"),
        (["--method", "oracle", "--src", "gta5"], "--src cannot be gta5"),
        (["--method", "oracle", "--tgt", "folder:a", "--src", "folder:ab"], "--src cannot be folder:ab"),
        (["--steps", "1500"], "--bank-start 1500: a run of --steps 1500 ends before its bank is used"),
        (["--selecting", "off"], "nothing fills the bank that --instance-loss image and --regenerate-semantic smooth"),
        (["--method", "daformer", "--instance-loss", "image"], "nothing fills the bank that --instance-loss image"),
        (["--bank-fill", "2000"], "--bank-fill 2000: the steps that fill the bank come before --bank-start 1500"),
    ],
)
def test_values_no_run_could_mean_are_refused(args, message):
    with pytest.raises(SystemExit, match=message):
        recipes.from_command_line(args)


def test_a_method_without_a_bank_asks_for_no_steps_of_it():
    assert recipes.from_command_line(["--method", "daformer", "--steps", "10"]).optim.steps == 10
    random = ["--bank-init", "random", "--selecting", "off"]  # a bank that stays what it was is one
    assert recipes.from_command_line(random).bank.selecting == "off"


def test_an_unknown_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        recipes.from_command_line(["--tempreature", "0.2"])
    assert "--temperature" in capsys.readouterr().err


def test_a_changed_name_that_does_not_exist_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'bank_size'"):
        changed(Config(), bank_sise=3)


def test_sizes():
    assert parse_size("1280x720", option="--x") == (1280, 720)


def test_help_is_complete_and_quick():
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 2
    shown = out.stdout
    for name in flat(Config()):
        assert config_module._flag(name) in shown
    assert shown.count("(default") == len(flat(Config()))
