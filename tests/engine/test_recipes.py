"""The named sets of options, and what a command line makes of them."""

import json
from pathlib import Path

import pytest
import torch

from dida import recipes
from dida.config import Config, changed, flat, to_dict
from dida.state import FORMAT


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


def test_given_options_win_over_recipes():
    config = recipes.from_command_line(["--src=toy-gta5", "--method", "daformer", "--crop", "96", "--out", "x"])
    assert (config.data.tgt, config.data.crop, config.method, config.run.out) == (
        "toy-cityscapes", 96, "daformer", Path("x"),
    )  # fmt: skip
    plain = recipes.from_command_line(["--method", "source", "--source-colour", "plain"])
    assert plain.data.source_colour == "plain"
    slow = recipes.from_command_line(["--method", "dacs", "--teacher-momentum", "0.999"])
    assert slow.teach.teacher_momentum == 0.999


def test_the_oracle_learns_from_its_target():
    oracle = recipes.from_command_line(["--method", "oracle", "--tgt-size", "512x256"])
    assert (oracle.data.src, oracle.data.src_size) == ("cityscapes", "512x256")
    toy = recipes.from_command_line(["--method", "oracle", "--tgt", "toy-cityscapes"])
    assert toy.data.src == "toy-cityscapes-oracle"  # the toy's own target has no training labels
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


def test_a_resumed_run_has_its_own_options(run):
    config = recipes.from_command_line(["--resume", str(run), "--workers", "3"])
    assert config == changed(Config(), phi=0.5, steps=2000, resume=run, workers=3)


@pytest.mark.parametrize("args", [["--phi", "0.7"], ["--method", "daformer"], ["--seed", "1"], ["--src", "synthia"]])
def test_what_would_make_another_run_of_it_cannot_change(run, args):
    with pytest.raises(SystemExit, match=f"{args[0][2:]} cannot change"):
        recipes.from_command_line(["--resume", str(run), *args])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no run folder, there is no config.json in it"),
        ("{", r"config\.json: Expecting property name.*--resume .*/checkpoints/FILE takes it"),
        ("", r"config\.json: Expecting value"),
        ("null", r"config\.json: expected an object with the options of Config, got NoneType"),
        ("[" * 100_000, r"config\.json: "),
        ('{"data": null}', r"config\.json: expected an object with the options of DataConfig"),
        ('{"data": {"crop": "64"}}', r"config\.json: --crop: expected a whole number, got '64'"),
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


@pytest.mark.parametrize("config_json", [None, "{", '{"instance": {"phi": 0.1}}'])
def test_a_checkpoint_brings_its_own_options(tmp_path, config_json):
    """Whatever became of config.json."""
    path = tmp_path / "checkpoints" / "step_000005.pt"
    path.parent.mkdir()
    torch.save({"format": FORMAT, "config": to_dict(changed(Config(), phi=0.5))}, path)
    if config_json is not None:
        (tmp_path / "config.json").write_text(config_json)
    config = recipes.from_command_line(["--resume", str(path), "--workers", "3"])
    assert config == changed(Config(), phi=0.5, resume=path, workers=3)
