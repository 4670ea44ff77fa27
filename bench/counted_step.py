"""The project's own training step on tensors that have shapes and lifetimes but no memory: what counts it runs this."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.meter import TensorMeter
from dida.assemble import build_method, build_state
from dida.batch import Batch, Belief, InstanceTarget, LabelledCrops, Mixed, Prediction
from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.method.bank import InstanceBank, NoBankRule
from dida.method.passes import Method
from dida.method.prior import ClassShares
from dida.method.views import StepRandom
from dida.state import TrainState
from dida.step import train_step
from tests.cases import Scene


def without_branch(method: Method, stands: Callable[[str], None] = lambda where: None) -> Method:
    """The same method with nothing where the branch's two calls stand; `stands` hears when one is passed."""

    def regenerate(seen: Prediction, bank: InstanceBank, shares: ClassShares, step: int) -> Belief:
        stands("gather")
        z_BCHW = seen.logits.softmax(1)
        return Belief(z_BCHW.clone(), z_BCHW, (InstanceTarget(1.0, seen.embed, z_BCHW),))

    def instance_loss(seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank) -> Tensor:
        stands("loss")
        return seen.embed.sum() * 0

    (mixed_pass,) = method.target_passes
    return replace(
        method,
        believe=replace(method.believe, regenerate=regenerate),
        target_passes=(replace(mixed_pass, instance_loss=instance_loss),),
        # The bank is written last, when the graphs are freed, and from the meta device there is no kernel to choose.
        update_bank=NoBankRule(),
    )


def count_second_step(state: TrainState, method: Method, scene: Scene, meter: TensorMeter) -> None:
    """A step on the meta device under the meter: the second one, in the first the optimizer has no moments yet."""
    batch = shapes_of_a_batch(scene)
    networks = (state.student, state.teacher, state.working.student, state.working.teacher)
    with meter:
        meter.know([list(module.state_dict().values()) for module in networks])
        meter.know(list(method.source_pass.feature_distance.encoder.state_dict().values()))
        for _ in range(2):
            meter.peak = meter.live
            meter.operations.clear()
            train_step(state, batch, method)


def shapes_of_a_batch(scene: Scene) -> Batch:
    image = torch.empty(scene.B, 3, *scene.HW, device="meta")
    label = torch.empty(scene.B, *scene.HW, dtype=torch.int64, device="meta")
    return Batch(LabelledCrops(image, label), torch.empty_like(image))


def build_step(scene: Scene, backbone: str, **speed: Any) -> tuple[TrainState, Method]:
    """State and method of the paper's run, past the start of the bank, on the meta device."""
    classes, meta = CITYSCAPES_CLASSES, torch.device("meta")
    config = changed(Config(), backbone=backbone, embed_dim=scene.D, bank_size=scene.K, **speed)
    state = build_state(config, classes, torch.ones(len(classes)), meta)
    state.step = config.instance.bank_start
    state.step_rng = lambda: StepRandom(random.Random(0), torch.Generator())  # the meta device has no generator
    return state, build_method(config, classes, imagenet=copy.deepcopy(state.student.encoder()))
