"""From options to the parts of a run: every word of the command line has a strategy, and a run has all its parts."""

import dataclasses
import itertools
import json
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

from dida import assemble as assembling
from dida import recipes
from dida.assemble import Parts, assemble, build_method, build_pairs, build_state, build_student
from dida.config import Config, InstanceConfig, SelfTrainingConfig, changed, to_dict
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.loader import batches
from dida.data.toy import Counts, generate
from dida.method import passes
from dida.method.bank import BankRule, NoBankRule
from dida.method.feature_distance import FeatureDistance, NoFeatureDistance
from dida.method.passes import Abstain, Method
from dida.step import train_step
from tests.engine.scenes import build, tiny

# Table of dida/assemble.py -> the option whose words are its keys, and those that stand for no strategy of the table.
TABLES = {
    "WEAK_VIEWS": (SelfTrainingConfig, "weak_view", set()),
    "PSEUDO_WEIGHTS": (SelfTrainingConfig, "pseudo_weight", set()),
    "SEMANTIC_RULES": (InstanceConfig, "regenerate_semantic", set()),
    "INSTANCE_RULES": (InstanceConfig, "regenerate_instance", set()),
    "GRIDS": (InstanceConfig, "instance_loss", {"off"}),
    "INSTANCE_PIXELS": (InstanceConfig, "instance_pixels", set()),
    "SLOTS": (InstanceConfig, "sampling", set()),
    "SELECTIONS": (InstanceConfig, "selecting", {"off"}),
}


def choices(options: type) -> dict[str, tuple[str, ...]]:
    """The words of every option of a group that is a choice."""
    hints = typing.get_type_hints(options)
    return {name: typing.get_args(kind) for name, kind in hints.items() if typing.get_origin(kind) is typing.Literal}


CHOICES = choices(SelfTrainingConfig) | choices(InstanceConfig)


def test_no_table_is_overlooked():
    assert {name for name, value in vars(assembling).items() if isinstance(value, dict) and name.isupper()} == set(
        TABLES
    )


@pytest.mark.parametrize("table", TABLES)
def test_the_words_of_an_option_are_the_keys_of_its_table(table):
    options, name, without = TABLES[table]
    assert without | set(getattr(assembling, table)) == set(choices(options)[name])
    assert not without & set(getattr(assembling, table))


def test_the_methods_are_the_recipes():
    assert set(choices(Config)["method"]) == set(recipes.METHODS)


def strategies(method: object) -> list[object]:
    """Whatever a method is made of, at any depth."""
    if not dataclasses.is_dataclass(method):
        return [part for one in method for part in strategies(one)] if isinstance(method, tuple) else []
    parts = [getattr(method, field.name) for field in dataclasses.fields(method)]
    return [method, *(found for part in parts for found in strategies(part))]


@pytest.mark.parametrize("name", CHOICES)
def test_every_word_builds_a_method_of_its_own(name):
    """No word is ignored: two of an option differ in the method, in the bank's slots or in the teacher's modes."""
    pixels_C = torch.arange(1, len(CITYSCAPES_CLASSES) + 1)
    made = []
    for word in CHOICES[name]:
        config = tiny(**{name: word})
        state = build_state(config, CITYSCAPES_CLASSES, pixels_C, torch.device("cpu"))
        method = build_method(config, CITYSCAPES_CLASSES)
        assert isinstance(method, Method)
        made.append((method, state.bank.labels.tolist(), [module.training for module in state.teacher.modules()]))
    for a, b in itertools.combinations(made, 2):
        assert a != b


@pytest.mark.parametrize("name", recipes.METHODS)
def test_strategies_are_frozen_values(name):
    """What changes during training is the state's: a method that could be changed would be in no checkpoint."""
    _, method = build(tiny(name))
    found = strategies(method)
    assert len(found) >= 5
    assert [one for one in found if not type(one).__dataclass_params__.frozen] == []
    assert build(tiny(name))[1] == method


def test_off_is_a_strategy_too():
    source, dacs, daformer, dida = (build(tiny(name))[1] for name in ("source", "dacs", "daformer", "dida"))
    assert (source.believe, source.target_passes) == (Abstain(), ())
    assert source.source_pass == passes.SourcePass(NoFeatureDistance())
    for method in (source, dacs, daformer):
        assert method.update_bank == NoBankRule()
    assert isinstance(dida.update_bank, BankRule)
    assert dacs == dataclasses.replace(daformer, believe=dacs.believe)  # the rest is data and the feature distance


def test_a_random_bank_is_used_at_once_and_nu_is_never_updated():
    rule = build(tiny(bank_init="random", bank_start=0))[1].update_bank
    assert (rule.start, rule.fill) == (0, 0)
    assert build(tiny(sampling="nu"))[1].update_bank.momentum == 1.0


# ---- the whole run, on a toy of a few pictures ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=Counts(source=4, source_val=1, target=3, val=1, test=1))
    torch.manual_seed(7)
    torch.save(build_student(tiny(), CITYSCAPES_CLASSES).backbone.state_dict(), root / "mit_b0.pth")
    return root


def options(toy: Path, *more: str, src: str | None = "toy-gta5") -> Config:
    small = ("--tgt", "toy-cityscapes", "--crop", "64", "--embed-dim", "16", "--bank-size", "40", "--steps", "6",
             "--bank-start", "1", "--bank-fill", "1", "--workers", "0", "--device", "cpu")  # fmt: skip
    source = ("--src", src) if src else ()
    return recipes.from_command_line([*small, *source, "--data-root", str(toy), *more])


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def first_batch(parts: Parts):
    stream = batches(parts.pairs, batch_size=2, start=0, stop=1, workers=0, device=parts.device)
    return next(stream)[0]


def test_a_run_has_all_its_parts(toy):
    config = options(toy, "--seed", "3")
    parts = assemble(config)
    assert parts.class_set == parts.pairs.source.class_set == parts.panel.class_set == CITYSCAPES_CLASSES
    assert parts.device == torch.device("cpu")
    assert (parts.state.seed, parts.state.step, parts.pairs.seed) == (3, 0, 3)
    assert parts.state.student.training
    assert parts.pairs.rare_classes is not None
    assert (len(parts.pairs.source.images), len(parts.pairs.target.images)) == (4, 3)
    assert (parts.panel.boundary_classes, parts.panel.temperature) == (2, 0.1)
    assert parts.method == build_method(config, parts.class_set)
    assert len(parts.state.bank.labels) == 40
    trace = train_step(parts.state, first_batch(parts), parts.method)
    assert all(loss.isfinite() for loss in trace.losses.values())


def test_the_seed_alone_decides_the_first_weights(toy):
    made = []
    for seed in ("0", "0", "1"):
        torch.rand(len(made))  # whatever else drew before must not matter
        made.append(weights_of(assemble(options(toy, "--seed", seed)).state.student))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


@pytest.mark.parametrize("method", recipes.METHODS)
def test_what_the_source_looks_like_is_up_to_the_method(toy, method):
    parts = assemble(options(toy, "--method", method, src=None if method == "oracle" else "toy-gta5"))
    assert parts.pairs.source_view.distort_colours == (method in ("source", "oracle"))
    assert not parts.pairs.target_view.distort_colours
    assert (parts.pairs.rare_classes is not None) == (method in ("daformer", "dida"))
    assert parts.pairs.source.name == ("toy-cityscapes-oracle" if method == "oracle" else "toy-gta5")


def test_slots_follow_the_pixels_of_the_source(toy):
    config = options(toy)
    pixels_C = assembling.build_pairs(config)[1]
    assert pixels_C.dtype == torch.int64
    present = (pixels_C > 0).nonzero().flatten().tolist()
    state = assemble(config).state
    assert sorted(set(state.bank.labels.tolist())) == present
    with pytest.raises(ValueError, match=f"--bank-size 3: the source has {len(present)} classes"):
        assemble(changed(config, bank_size=3))


def test_the_feature_distance_is_to_the_encoders_first_weights(toy):
    weights = ("--weights", str(toy / "mit_b0.pth"), "--feature-weight", "0.25")
    parts = assemble(options(toy, *weights))
    distance = parts.method.source_pass.feature_distance
    assert isinstance(distance, FeatureDistance)
    assert distance.weight == 0.25
    assert same(distance.encoder.state_dict(), torch.load(toy / "mit_b0.pth"))
    assert same(distance.encoder.state_dict(), parts.state.student.backbone.state_dict())
    before = weights_of(distance.encoder)
    train_step(parts.state, first_batch(parts), parts.method)
    assert same(distance.encoder.state_dict(), before)
    assert not same(distance.encoder.state_dict(), parts.state.student.backbone.state_dict())
    off = assemble(options(toy, *weights[:2], "--feature-weight", "0"))
    assert off.method.source_pass.feature_distance == NoFeatureDistance()


def test_without_imagenet_weights_it_is_said_that_there_is_no_feature_distance(toy, caplog):
    with caplog.at_level("INFO"):
        parts = assemble(options(toy, "--weights", "none", "--feature-weight", "0.25"))
    assert parts.method.source_pass.feature_distance == NoFeatureDistance()
    assert "feature distance off: with --weights none" in caplog.text


def test_a_run_to_resume_goes_on_from_its_newest_checkpoint(toy, tmp_path):
    config = options(toy)
    parts = assemble(config)
    train_step(parts.state, first_batch(parts), parts.method)
    parts.state.save(tmp_path, to_dict(config), parts.class_set.to_dict())
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    resumed = assemble(recipes.from_command_line(["--resume", str(tmp_path)])).state
    assert resumed.step == 1
    for part in ("student", "teacher", "bank"):
        assert same(getattr(resumed, part).state_dict(), getattr(parts.state, part).state_dict())
    assert resumed.schedule.get_last_lr() == parts.state.schedule.get_last_lr()


def test_init_is_where_both_networks_start_and_the_feature_distance_does_not(toy, tmp_path):
    start = assemble(options(toy, "--seed", "9"))
    path = start.state.save(tmp_path, {}, {})
    init = ("--init", str(path), "--weights", str(toy / "mit_b0.pth"), "--feature-weight", "0.1")
    parts = assemble(options(toy, *init))
    for network in (parts.state.student, parts.state.teacher):
        assert same(network.state_dict(), start.state.student.state_dict())
    encoder = parts.method.source_pass.feature_distance.encoder
    assert same(encoder.state_dict(), torch.load(toy / "mit_b0.pth"))
    with pytest.raises(ValueError, match=r"--init .*: not the weights of mit_b0 with --embed-dim 32"):
        assemble(options(toy, *init, "--embed-dim", "32"))


def test_a_resumed_run_has_no_use_for_init(toy, tmp_path):
    config = changed(options(toy), init=tmp_path / "gone")
    parts = assemble(options(toy))
    parts.state.save(tmp_path, to_dict(config), parts.class_set.to_dict())
    assert assemble(changed(config, resume=tmp_path)).state.step == 0
    with pytest.raises(FileNotFoundError, match="gone"):
        assemble(config)


@pytest.mark.parametrize(
    "more, error, message",
    [
        (("--device", "cuda:99"), ValueError, "--device cuda:99"),
        (("--backbone", "mit_b7"), ValueError, "no backbone 'mit_b7'"),
        (("--weights", "nowhere.pth"), FileNotFoundError, "nowhere.pth"),
        (("--tgt", "toy-mars"), ValueError, "no domain is called 'toy-mars'"),
        (("--data-root", "nowhere"), FileNotFoundError, "toy-gta5"),
    ],
)
def test_what_is_not_there_is_named(toy, more, error, message):
    with pytest.raises(error, match=message):
        assemble(options(toy, *more))


def test_a_random_bank_is_full_and_of_the_seed():
    def random_bank(seed: int) -> torch.Tensor:
        config = tiny(bank_init="random", bank_start=0, seed=seed)
        ones_C = torch.ones(len(CITYSCAPES_CLASSES))
        return build_state(config, CITYSCAPES_CLASSES, ones_C, torch.device("cpu")).bank.features

    assert torch.equal(random_bank(0), random_bank(0))
    assert not torch.equal(random_bank(0), random_bank(1))
    assert random_bank(0).norm(dim=1).allclose(torch.ones(40))


# ---- a run goes on as what it was ----------------------------------------------------------------------------------


@pytest.fixture
def stopped(toy, tmp_path) -> tuple[Config, dict[str, Any], Path]:
    """Options of a run with a copy of the toy, what its checkpoint says of it, and its data root."""
    root = Path(shutil.copytree(toy, tmp_path / "data"))
    config = options(root)
    pairs, _ = build_pairs(config)
    checkpoint = {
        "config": to_dict(config),
        "classes": pairs.source.class_set.to_dict(),
        "files": pairs.listing(),
    }
    return config, checkpoint, root


def go_on(config: Config, checkpoint: dict[str, Any]) -> None:
    assembling.require_same_run(config, build_pairs(config)[0], checkpoint, Path("run/checkpoints/step_000005.pt"))


@pytest.mark.parametrize(
    "edit, said",
    [
        ({"seed": 7}, r"seed \(7 and 0\)"),
        ({"method": "daformer"}, r"method \(daformer and dida\)"),
        ({"steps": 4}, r"steps \(4 and 6\)"),
        ({"phi": 0.5, "lr": 0.5}, r"lr \(0\.5 and 0\.003\), phi \(0\.5 and 0\.7\)"),
        ({"tgt_size": "64x32"}, r"tgt_size \(64x32 and 256x128\)"),
    ],
)
def test_a_config_that_was_edited_is_not_gone_on_with(stopped, edit, said):
    config, checkpoint, _ = stopped
    go_on(config, checkpoint)
    with pytest.raises(
        ValueError, match=rf"^config.json and step_000005.pt differ in {said}; .*--resume run/checkpoints"
    ):
        go_on(changed(config, **edit), checkpoint)


def test_what_may_change_may_differ(stopped, tmp_path):
    config, checkpoint, root = stopped
    moved = root.rename(tmp_path / "elsewhere")
    go_on(changed(config, data_root=moved, workers=3, log_every=7, save_every=8, debug=True), checkpoint)


def target_pictures(root: Path) -> list[Path]:
    return sorted((root / "toy" / "cityscapes" / "leftImg8bit" / "train").rglob("*.png"))


def one_more(root: Path) -> None:
    first = target_pictures(root)[0]
    shutil.copy(first, first.with_name("aaa" + first.name))


def one_less(root: Path) -> None:
    target_pictures(root)[0].unlink()


def renamed(root: Path) -> None:
    first = target_pictures(root)[0]
    first.rename(first.with_name("zzz_000000_000019_leftImg8bit.png"))


def source_less(root: Path) -> None:
    for folder in ("images", "labels"):
        sorted((root / "toy" / "gta" / folder).iterdir())[0].unlink()


@pytest.mark.parametrize(
    "change, which", [(one_more, "target"), (one_less, "target"), (renamed, "target"), (source_less, "source")]
)
def test_data_that_changed_since_is_only_gone_on_with_when_that_is_said(stopped, change, which):
    config, checkpoint, root = stopped
    change(root)
    with pytest.raises(ValueError, match=f"the files of the {which} are not those that step_000005.pt .*--new-data"):
        go_on(config, checkpoint)
    go_on(changed(config, new_data=True), checkpoint)


def test_other_classes_are_another_run(stopped):
    config, checkpoint, _ = stopped
    names = list(checkpoint["classes"]["names"])
    with pytest.raises(ValueError, match="its classes are not those of --src toy-gta5"):
        go_on(config, checkpoint | {"classes": checkpoint["classes"] | {"names": names[::-1]}})


def test_a_checkpoint_that_names_no_files_says_so(stopped, caplog):
    config, checkpoint, _ = stopped
    with caplog.at_level("INFO"):
        go_on(config, checkpoint | {"files": None})
    assert "does not say which files it was trained on" in caplog.text
