"""A network over the images of all processes: of one process it is the network that it was."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dida.machine.distributed import ALONE, World
from dida.models.segmentor import Segmentor
from dida.models.whole_batch import over_all_processes


class Counting(World):
    """One process that counts what it is asked for."""

    asked = 0

    def mean(self, x: Tensor) -> Tensor:
        self.asked += 1
        return super().mean(x)


@pytest.mark.parametrize(
    "name", ["mit_b0", "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100", "regnety_002"]
)
def test_norms_with_and_without_activations_stay_what_they_are(name):
    torch.manual_seed(0)
    network = Segmentor(name, 5, 16, drop_path=0.0).train()
    for_all = copy.deepcopy(network)
    world = Counting()
    over_all_processes(for_all, world)
    assert for_all.state_dict().keys() == network.state_dict().keys()
    image = torch.randn(2, 3, 64, 64)
    answers = []
    for each in (network, for_all):
        torch.manual_seed(1)  # of the head's dropout
        answers.append(each(image).logits)
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-5)
    assert world.asked > 0
    for name, value in network.state_dict().items():
        torch.testing.assert_close(for_all.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(for_all.eval()(image).logits, network.eval()(image).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        BatchNormAct2d(4, drop_layer=nn.Dropout),
        type("Another", (nn.BatchNorm2d,), {})(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_that_does_something_else_is_refused(norm):
    with pytest.raises(ValueError, match="cannot be"):
        over_all_processes(nn.Sequential(norm), ALONE)
