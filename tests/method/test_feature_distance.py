"""The baseline's feature distance: which cells count, and what it is where none does."""

import torch
from torch import nn

from dida.batch import IGNORE, LabelledCrops, Prediction
from dida.method.feature_distance import FeatureDistance, NoFeatureDistance, feature_distance


class Encoder(nn.Module):
    """Two stages; the deepest is the image averaged over cells of 4 pixels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image):
        return [image, nn.functional.avg_pool2d(image, 4) * self.scale]


def distance(weight: float = 0.5) -> FeatureDistance:
    return feature_distance(Encoder(), weight=weight, things=(1,), classes=3)


def cells(*kinds: list[int]) -> torch.Tensor:
    """[1, 4, 4 * cells] labels: 16 given values per cell of 4x4 pixels."""
    return torch.cat([torch.tensor(kind).view(4, 4) for kind in kinds], 1)[None]


def test_a_cell_counts_when_one_thing_holds_three_quarters_of_it():
    label = cells([1] * 12 + [0] * 4, [1] * 11 + [0] * 5, [0] * 16, [IGNORE] * 13 + [1] * 3)
    assert distance().thing_cells(label, (1, 4)).tolist() == [[[True, False, False, False]]]


def test_distance_is_the_mean_norm_over_those_cells():
    label = cells([1] * 16, [0] * 16, [1] * 16)
    image = torch.randn(1, 3, 4, 12, generator=torch.Generator().manual_seed(0))
    deepest = Encoder()(image)[-1].detach()
    moved = deepest + torch.tensor([3.0, 0.0, 4.0]).view(1, 3, 1, 1)  # a step of length 5
    moved[..., 1] += 100  # of the cell that does not count
    moved[..., 2] = deepest[..., 2]  # length 0
    seen = Prediction(torch.zeros(1, 3, 4, 12), torch.zeros(1, 2, 1, 3), moved)
    assert torch.allclose(distance(0.5)(seen, LabelledCrops(image, label)), torch.tensor(0.5 * (5 + 0) / 2))


def test_no_thing_is_zero_and_its_gradient_too():
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    deepest = torch.randn(1, 3, 1, 1, requires_grad=True)
    seen = Prediction(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 1, 1), deepest)
    loss = distance()(seen, LabelledCrops(image, cells([0] * 16)))
    loss.backward()
    assert loss == 0
    assert deepest.grad.eq(0).all()


def test_the_encoder_is_frozen():
    assert not any(p.requires_grad for p in distance().encoder.parameters())
    assert not distance().encoder.training


def test_off_is_zero():
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = Prediction(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 1, 1), image)
    assert NoFeatureDistance()(seen, LabelledCrops(image, cells([1] * 16))) == 0
