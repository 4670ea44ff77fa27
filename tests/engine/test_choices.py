"""A word of the command line stands for one strategy, and every strategy has its word."""

import typing
from dataclasses import fields

import pytest

from dida import assemble, recipes
from dida.config import Config, DataConfig, InstanceConfig, ModelConfig, OptimConfig, RunConfig, SelfTrainingConfig

# Option -> its strategies by word. "off" is a word without one where the strategy of another option says it.
STRATEGIES = {
    "method": recipes.METHODS,
    "weak_view": assemble.WEAK_VIEWS,
    "pseudo_weight": assemble.PSEUDO_WEIGHTS,
    "regenerate_semantic": assemble.SEMANTIC_RULES,
    "regenerate_instance": assemble.INSTANCE_RULES,
    "instance_loss": assemble.GRIDS | {"off": None},
    "instance_pixels": assemble.INSTANCE_PIXELS,
    "sampling": assemble.SLOTS,
    "selecting": assemble.SELECTIONS | {"off": None},
}
# Two words that are told apart by a comparison: a third one would silently mean the second.
EITHER_OR = {"source_colour", "teacher_norm", "confidence", "mix_classes", "bank_init"}


def words() -> dict[str, set[str]]:
    """Every option that is a choice of words, with them."""
    groups = (Config, DataConfig, ModelConfig, OptimConfig, SelfTrainingConfig, InstanceConfig, RunConfig)
    hints = [(field.name, typing.get_type_hints(group)[field.name]) for group in groups for field in fields(group)]
    return {name: set(typing.get_args(hint)) for name, hint in hints if typing.get_origin(hint) is typing.Literal}


def test_no_choice_is_overlooked():
    assert words().keys() == STRATEGIES.keys() | EITHER_OR


@pytest.mark.parametrize("option", STRATEGIES)
def test_words_and_strategies_are_the_same(option):
    assert words()[option] == set(STRATEGIES[option])


@pytest.mark.parametrize("option", sorted(EITHER_OR))
def test_an_option_without_a_table_has_two_words(option):
    assert len(words()[option]) == 2
