"""From options to the parts of a run: every word of the command line has a strategy, and a run has all its parts."""

import dataclasses
import itertools
import json
import typing
from pathlib import Path

import pytest
import torch

from dida import assemble as assembling
from dida import recipes
from dida.assemble import Parts, assemble, build_method, build_state, build_student
from dida.config import Config, InstanceConfig, ModelConfig, SelfTrainingConfig, changed, to_dict
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.data.loader import batches
from dida.data.toy import Counts, generate
from dida.method import passes
from dida.method.bank import BankRule, NoBankRule
from dida.method.feature_distance import FeatureDistance, NoFeatureDistance
from dida.method.passes import Abstain, Method
from dida.step import train_step
from tests.engine.scenes import batch, build, tiny

# Table of dida/assemble.py -> the option whose words are its keys, and those that stand for no strategy of the table.
TABLES = {
    "HEADS": (ModelConfig, "head", set()),
    "WEAK_VIEWS": (SelfTrainingConfig, "weak_view", set()),
    "PSEUDO_WEIGHTS": (SelfTrainingConfig, "pseudo_weight", set()),
    "SEMANTIC_RULES": (InstanceConfig, "regenerate_semantic", set()),
    "INSTANCE_RULES": (InstanceConfig, "regenerate_instance", set()),
    "GRIDS": (InstanceConfig, "instance_loss", {"off"}),
    "WEIGHT_POWERS": (InstanceConfig, "instance_weights", set()),
    "PRIORS": (InstanceConfig, "instance_prior", set()),
    "SLOTS": (InstanceConfig, "sampling", set()),
    "SELECTIONS": (InstanceConfig, "selecting", {"off"}),
}


def choices(options: type) -> dict[str, tuple[str, ...]]:
    """The words of every option of a group that is a choice."""
    hints = typing.get_type_hints(options)
    return {name: typing.get_args(kind) for name, kind in hints.items() if typing.get_origin(kind) is typing.Literal}


CHOICES = choices(ModelConfig) | choices(SelfTrainingConfig) | choices(InstanceConfig)


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


@pytest.mark.parametrize(
    "options",
    [{"method": "dida", "instance_prior": "none"}, {"method": "source", "instance_prior": "student"}],
    ids=str,
)
def test_shares_stay_where_nobody_asks_for_them_or_there_are_no_pseudo_labels(options):
    state, method = build(tiny(**options))
    before = state.shares.share.clone()
    train_step(state, batch(), method)
    assert torch.equal(state.shares.share, before)


@pytest.mark.parametrize("norm, follows", [("batch", False), ("averaged", True)])
def test_a_teacher_with_the_students_running_averages_follows_them(norm, follows):
    state, method = build(tiny(teacher_norm=norm))
    assert method.update_teacher.buffers is follows
    batch_norms = [module for module in state.teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert batch_norms
    assert all(module.training is not follows for module in batch_norms)


@pytest.mark.parametrize("self_training", [False, True])
def test_a_teacher_that_is_never_asked_takes_the_students_statistics(self_training):
    _, method = build(tiny(teacher_norm="batch", self_training=self_training))
    assert method.update_teacher.buffers is not self_training


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
    kept = distance.encoder.backbone
    assert same(kept.state_dict(), torch.load(toy / "mit_b0.pth"))
    assert same(kept.state_dict(), parts.state.student.backbone.state_dict())
    before = weights_of(kept)
    train_step(parts.state, first_batch(parts), parts.method)
    assert same(kept.state_dict(), before)
    assert not same(kept.state_dict(), parts.state.student.backbone.state_dict())
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


def test_a_run_that_stays_close_to_nothing_goes_on_without_its_start_weights(toy, tmp_path):
    weights = tmp_path / "gone.pth"
    weights.write_bytes((toy / "mit_b0.pth").read_bytes())
    for feature_weight in ("0", "0.25"):
        run = tmp_path / feature_weight
        config = options(toy, "--weights", str(weights), "--feature-weight", feature_weight)
        parts = assemble(config)
        parts.state.save(run, to_dict(config), parts.class_set.to_dict())
        (run / "config.json").write_text(json.dumps(to_dict(config)))
    weights.unlink()
    resumed = assemble(recipes.from_command_line(["--resume", str(tmp_path / "0")])).state
    assert same(resumed.student.state_dict(), parts.state.student.state_dict())
    with pytest.raises(OSError, match=r"gone\.pth"):
        assemble(recipes.from_command_line(["--resume", str(tmp_path / "0.25")]))


def test_a_look_at_the_targets_labels_needs_a_time(toy):
    with pytest.raises(ValueError, match=r"--eval-target-labels .* needs --eval-every N"):
        assemble(options(toy, "--eval-target-labels"))


def test_init_is_where_both_networks_start_and_the_feature_distance_does_not(toy, tmp_path):
    start = assemble(options(toy, "--seed", "9"))
    path = start.state.save(tmp_path, {}, start.class_set.to_dict())
    init = ("--init", str(path), "--weights", str(toy / "mit_b0.pth"), "--feature-weight", "0.1")
    parts = assemble(options(toy, *init))
    for network in (parts.state.student, parts.state.teacher):
        assert same(network.state_dict(), start.state.student.state_dict())
    encoder = parts.method.source_pass.feature_distance.encoder.backbone
    assert same(encoder.state_dict(), torch.load(toy / "mit_b0.pth"))
    with pytest.raises(ValueError, match=r"--init .*: not the weights of mit_b0 with --embed-dim 32"):
        assemble(options(toy, *init, "--embed-dim", "32"))
    path = start.state.save(tmp_path, {}, {})
    with pytest.raises(ValueError, match=r"--init .*: no class set"):
        assemble(options(toy, *init))


@pytest.mark.parametrize(
    "names, said",
    [
        (("car", "tractor", "road"), "3 classes taken; new: tractor; left out: sidewalk"),
        (CITYSCAPES_CLASSES.names[::-1], "19 of 19 classes taken"),
        (("cow", "barn"), "0 of 2 classes taken; new: cow, barn; left out: road"),
        ((*CITYSCAPES_CLASSES.names, "tram stop"), "19 of 20 classes taken; new: tram stop"),
    ],
)
def test_init_from_a_run_with_other_classes_is_matched_by_name(tmp_path, caplog, names, said):
    state = build(tiny())[0]
    path = state.save(tmp_path, {}, CITYSCAPES_CLASSES.to_dict())
    class_set = ClassSet(tuple(names), ((0, 0, 0),) * len(names), (), tuple(range(len(names))))
    torch.manual_seed(1)
    fresh = build_student(tiny(), class_set).decode_head.conv_seg
    torch.manual_seed(1)
    with caplog.at_level("INFO"):
        student, _ = assembling.load_networks(changed(tiny(), init=path), class_set, torch.device("cpu"))
    assert said.removeprefix("3 ") in caplog.text
    assert same(student.backbone.state_dict(), state.student.backbone.state_dict())
    theirs = state.student.decode_head.conv_seg
    for mine, name in enumerate(names):
        known = name in CITYSCAPES_CLASSES.names
        row = theirs.weight[CITYSCAPES_CLASSES.names.index(name)] if known else fresh.weight[mine]
        assert torch.equal(student.decode_head.conv_seg.weight[mine], row)


def test_a_source_whose_classes_changed_is_not_resumed(toy, tmp_path):
    """Other names, or label maps that spell them otherwise."""
    config = options(toy)
    parts = assemble(config)
    classes = parts.class_set
    for change, said in (
        ({"names": ("street", *classes.names[1:])}, r"are now road, .*; the run began with street"),
        ({"label_ids": (8, 7, *classes.label_ids[2:])}, r"classes are now 7, 8, .*; the run began with 8, 7, "),
    ):
        parts.state.save(tmp_path, to_dict(config), dataclasses.replace(classes, **change).to_dict())
        with pytest.raises(ValueError, match=said):
            assemble(changed(config, resume=tmp_path))


def test_a_config_that_was_edited_is_not_gone_on_with(toy, tmp_path):
    config = options(toy)
    parts = assemble(config)
    parts.state.save(tmp_path, to_dict(config), parts.class_set.to_dict())
    edited = changed(config, phi=0.5, bank_every=7, resume=tmp_path)
    said = (
        r"^config\.json and step_000000\.pt differ in bank_every \(7 and 10\), phi \(0\.5 and 0\.9\); put config\.json"
    )
    with pytest.raises(ValueError, match=said):
        assemble(edited)
    assert assemble(changed(config, resume=tmp_path, workers=2, log_every=1)).state.step == 0  # nothing of the method


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
        (("--device", "cuda:99"), ValueError, "device cuda:99: "),
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


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "resnet18", "mobilenetv3_small_050"])
def test_a_batch_norm_of_one_number_is_refused_before_the_first_step(backbone):
    config = changed(Config(), backbone=backbone, crop=32, batch_size=1, weights="none")
    student = build_student(config, CITYSCAPES_CLASSES)
    with pytest.raises(
        ValueError, match=f"^--crop 32 with one picture at a time: the coarsest map of {backbone} is one pixel"
    ):
        assembling._require_statistics(config, student)
    for other in (changed(config, crop=64), changed(config, batch_size=2)):
        assembling._require_statistics(other, student)


def test_that_is_asked_of_every_run(toy):
    with pytest.raises(ValueError, match=r"^--crop 32 with one picture at a time"):
        assemble(options(toy, "--backbone", "test_resnet", "--crop", "32", "--batch-size", "1"))
