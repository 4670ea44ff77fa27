"""Learning rate and weight decay of every parameter, AdamW's own options, and the schedule of the whole run."""

import numpy as np
import pytest
import torch
from torch import nn

from . import engine
from .named import record

RECORD = record("optim")


@pytest.mark.parametrize("backbone", ["mit_b0", "mit_b5"])
def test_groups_of_every_parameter(backbone):
    with torch.device("meta"):
        model = engine.segmentor(engine.of_backbone(backbone))
    group_of = {id(p): group for group in engine.optimizer(model).param_groups for p in group["params"]}
    ours = {name: (group_of[id(p)]["lr"], group_of[id(p)]["weight_decay"]) for name, p in model.named_parameters()}
    names = RECORD[f"{backbone}.names"].tolist()
    assert sorted(ours) == sorted(names)
    assert np.array([ours[name] for name in names]) == pytest.approx(RECORD[f"{backbone}.lr_wd"], rel=1e-12)


def test_options_of_adamw():
    (group, *_) = engine.optimizer(nn.Linear(1, 1)).param_groups
    assert [*group["betas"], group["eps"], group["amsgrad"]] == RECORD["adamw"].tolist()


def test_schedule_of_the_whole_run():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.decode_head = nn.Linear(1, 1), nn.Linear(1, 1)

    rates = [engine.learning_rate(Tiny(), int(step)) for step in RECORD["lr.steps"]]
    ours = np.array([(rate["encoder"], rate["head"]) for rate in rates])
    assert ours == pytest.approx(RECORD["lr"], rel=1e-9)
