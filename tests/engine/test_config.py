"""The options: which there are, what the paper has, what goes together, and how they are saved."""

from pathlib import Path

import pytest

from dida import recipes
from dida.config import MAY_CHANGE, Config, changed, flat, from_dict, to_dict

OPTIONS = """
method recipe config resume new_data check_data debug
src tgt data_root src_size tgt_size enlarge crop batch_size workers cache rare_class_sampling
rare_class_temperature rare_class_pixels rare_class_share rare_class_crop_share source_colour max_class_share
backbone head weights init embed_dim drop_path
steps lr head_lr_factor weight_decay warmup clip_gradient
precision compile checkpoint_activations accumulate
self_training teacher_momentum teacher_norm threshold pseudo_weight confidence ignore_top ignore_bottom mix_classes
jitter_chance jitter_strength blur_chance weak_view feature_weight
instance_loss instance_weight instance_weights instance_prior temperature regenerate_semantic regenerate_instance phi
instance_phi
bank_size sampling selecting clusters boundary_classes bank_momentum bank_every bank_init bank_start bank_fill
seed device out log_every panel_every save_every keep eval_every eval_target_labels tracker
"""


def test_the_list_of_options_is_frozen():
    """An option more or less is a decision: change it here, and say why in the commit."""
    assert list(flat(Config())) == OPTIONS.split()
    assert len(flat(Config())) <= 83


@pytest.mark.parametrize("recipe", [*recipes.METHODS.values(), recipes.toy])
def test_config_survives_json(recipe):
    config = recipe(Config())
    config = changed(config, out=Path("here"), init=Path("a/b"))
    assert from_dict(to_dict(config)) == config


def test_a_config_of_another_version_is_refused():
    with pytest.raises(ValueError, match=r"unknown options.*'bogus'.*another version"):
        from_dict(to_dict(Config()) | {"bogus": 1})


def test_an_option_of_an_older_version_is_known_by_its_name_of_today():
    saved = to_dict(changed(Config(), instance_weights="balanced"))
    saved["instance"]["instance_pixels"] = saved["instance"].pop("instance_weights")
    assert from_dict(saved).instance.instance_weights == "balanced"


def test_the_paper_is_the_default():
    """SPEC 8, 9.2 and the decisions of the design, in one place."""
    c = Config()
    assert (c.optim.steps, c.optim.lr, c.optim.weight_decay, c.optim.warmup) == (40_000, 6e-5, 0.01, 1500)
    assert (c.data.batch_size, c.data.crop, c.data.src_size, c.data.tgt_size) == (2, 512, "1280x720", "1024x512")
    assert (c.instance.bank_size, c.instance.bank_every, c.instance.bank_momentum) == (300, 50, 0.999)
    assert (c.instance.temperature, c.instance.phi, c.instance.instance_weight) == (0.1, 0.9, 1.0)
    assert (c.teach.teacher_momentum, c.teach.threshold, c.teach.feature_weight) == (0.999, 0.968, 0.005)


def test_a_changed_name_that_does_not_exist_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'bank_size'"):
        changed(Config(), bank_sise=3)


def test_what_may_change_on_resume_are_options():
    assert set(flat(Config())) >= MAY_CHANGE


@pytest.mark.parametrize(
    "values, message",
    [
        (None, "expected an object with the options of Config, got NoneType"),
        ({"data": [1]}, "expected an object with the options of DataConfig, got list"),
        ({"optim": {"steps": "many"}}, "--steps: expected a whole number, got 'many'"),
        ({"optim": {"lr": None}}, "--lr: expected a number, got None"),
        ({"data": {"crop": 0}}, r"--crop: expected a number in \[32, 16384\], got 0"),
        ({"teach": {"self_training": "yes"}}, "--self-training: expected true or false, got 'yes'"),
        ({"data": {"src": 3}}, "--src: expected text, got 3"),
        ({"data": {"data_root": 3}}, "--data-root: expected a path, got 3"),
        ({"instance": {"sampling": "all"}}, "--sampling: expected one of cbs, rs, ils, nu, got 'all'"),
    ],
)
def test_a_saved_config_is_held_to_its_types_and_ranges(values, message):
    saved = to_dict(Config())
    if isinstance(values, dict):
        values = saved | {k: saved[k] | v if isinstance(v, dict) else v for k, v in values.items()}
    with pytest.raises(ValueError, match=message):
        from_dict(values)
