"""Sec. III as strategies: the one place where names of the config become functions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from dida.batch import Belief, Labeled, Mixed, Prediction, PseudoLabel
from dida.config import Config
from dida.method import bank, discrimination, feature_distance, regeneration, sampling, teacher, views
from dida.method.bank import InstanceBank
from dida.method.views import StepRandom


@dataclass(frozen=True)
class Method:
    """What one step consists of. Every field is a function; "off" is a function too, so the step has no branch."""

    weak_view: Callable[[Tensor, StepRandom], Tensor]
    regenerate: Callable[..., Belief]  # (Prediction, InstanceBank, step) -> Belief
    label_target: Callable[[Belief], PseudoLabel]
    mixed_view: Callable[[Labeled, Tensor, PseudoLabel, StepRandom], Mixed]
    feature_distance: Callable[[Prediction, Labeled], Tensor]
    instance_loss: Callable[[Prediction, Belief, Mixed, InstanceBank, StepRandom], Tensor]
    update_teacher: Callable[[nn.Module, nn.Module, int], None]
    update_bank: Callable[[InstanceBank, Tensor, Tensor, int, StepRandom], None]
    target_half: str  # "adapt", or "abstain" for methods that never look at the target


def build_method(config: Config, *, classes: int, imagenet: nn.Module | None, things: tuple[int, ...]) -> Method:
    """Bind the strategies that a config names.

    `imagenet` is the frozen encoder of the feature distance, None where there are no ImageNet weights; `things` are the
    classes it looks at.
    """
    teach, inst = config.teach, config.bank
    photometric = views.Photometric(teach.jitter_chance, teach.jitter_strength, teach.blur_chance)
    distance = feature_distance.no_distance
    if imagenet is not None and teach.feature_weight > 0:
        distance = feature_distance.FeatureDistance(
            imagenet, weight=teach.feature_weight, things=things, classes=classes
        )
    return Method(
        weak_view=partial(views.WEAK_VIEWS[teach.weak_view], photometric=photometric),
        regenerate=_build_regenerate(config),
        label_target=teacher.build_label_target(teach),
        mixed_view=partial(views.mixed_view, classes=classes, mix_classes=teach.mix_classes, photometric=photometric),
        feature_distance=distance,
        instance_loss=partial(
            discrimination.INSTANCE_LOSS[inst.instance_loss],
            weight=inst.instance_weight,
            temperature=inst.temperature,
            choose=partial(discrimination.INSTANCE_PIXELS[inst.instance_pixels], classes=classes),
        ),
        update_teacher=partial(
            teacher.update_teacher, momentum=teach.teacher_momentum, buffers=teach.teacher_norm == "averaged"
        ),
        update_bank=_build_bank_rule(config, classes),
        target_half="adapt" if teach.self_training else "abstain",
    )


def _build_regenerate(config: Config) -> Callable[..., Belief]:
    """Before the bank starts both levels are left alone; from then on they correct each other."""
    inst = config.bank
    smoothing = {"phi": inst.phi, "temperature": inst.temperature}
    none = {"phi": 1.0, "temperature": inst.temperature}
    before = partial(
        regeneration.regenerate,
        semantic=partial(regeneration.keep_semantic, **none),
        instance=partial(regeneration.no_instance, phi=1.0),
    )
    instance = regeneration.no_instance
    if inst.instance_loss != "off":
        instance = regeneration.INSTANCE[inst.regenerate_instance]
    after = partial(
        regeneration.regenerate,
        semantic=partial(regeneration.SEMANTIC[inst.regenerate_semantic], **smoothing),
        instance=partial(instance, phi=inst.instance_phi),
    )
    return partial(_from_step, inst.bank_start, before, after)


def _from_step(start: int, before: Callable[..., Any], after: Callable[..., Any], *args: Any, step: int) -> Any:
    return (after if step >= start else before)(*args)


def _build_bank_rule(config: Config, classes: int) -> Callable[..., None]:
    inst = config.bank
    if inst.selecting == "off":
        return bank.keep
    return bank.BankRule(
        sampling.build_select(
            inst.selecting, classes=classes, boundary_classes=inst.boundary_classes, clusters=inst.clusters
        ),
        classes=classes,
        momentum=1.0 if inst.sampling == "nu" else inst.bank_momentum,  # NU: never updated after it was filled
        every=inst.bank_every,
        start=inst.bank_start if inst.bank_init == "source" else 0,
        fill=inst.bank_fill if inst.bank_init == "source" else 0,
    )
