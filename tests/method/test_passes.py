"""III-B, pass by pass: each adds its own gradient, and leaves behind no more than others need."""

import ast
import inspect
import random

import pytest
import torch
from torch import Tensor, nn

from dida.batch import Batch, Belief, LabelledCrops, Mixed, Prediction, PseudoLabel
from dida.method import passes
from dida.method.bank import InstanceBank
from dida.method.passes import Abstain, Believe, MixedPass, SourcePass
from dida.method.prior import ClassShares
from dida.method.views import StepRandom

C, D, HW = 3, 4, (4, 6)


class Network(nn.Module):
    """A pixel's own scores; the embedding is in half the resolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.classify, self.embed = nn.Conv2d(3, C, 1), nn.Conv2d(3, D, 2, stride=2)

    def forward(self, image: Tensor) -> Prediction:
        embed = self.embed(image)
        return Prediction(self.classify(image), embed, embed)


def rng() -> StepRandom:
    return StepRandom(random.Random(0), torch.Generator().manual_seed(0))


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 2, 3, *HW, generator=generator)
    return Batch(LabelledCrops(image[0], torch.randint(C, (2, *HW), generator=generator)), image[1])


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters()]


def length(seen: Prediction, *rest: object) -> Tensor:
    """A stand-in for the losses on embeddings."""
    return seen.embed.square().mean()


def test_the_source_pass_adds_the_gradient_of_its_losses():
    network, source = Network(), batch().source
    found = SourcePass(length)(network, source)
    once = gradients(network)
    SourcePass(length)(network, source)
    for p, grad in zip(network.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * grad)  # added to what is there
    network.zero_grad()
    seen = network(source.image)
    cross_entropy = nn.functional.cross_entropy(seen.logits, source.label)
    (cross_entropy + length(seen)).backward()
    for p, grad in zip(network.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, grad)
    torch.testing.assert_close(found.losses, {"source": cross_entropy.detach(), "feature": length(seen).detach()})


def test_the_source_pass_keeps_its_losses_and_embedding_alone():
    """No logits: at image resolution they would live on, beside those of the target, until the step is done."""
    found = SourcePass(length)(Network(), batch().source)
    assert found._fields == ("losses", "embed")
    assert set(found.losses) == {"source", "feature"}
    assert found.embed.shape == (2, D, HW[0] // 2, HW[1] // 2)
    for tensor in (*found.losses.values(), found.embed):
        assert not tensor.requires_grad  # and so no graph, which would hold all of the pass's activations
    assert all(loss.shape == () and loss.untyped_storage().nbytes() <= 8 for loss in found.losses.values())
    assert found.embed.untyped_storage().nbytes() == found.embed.numel() * 4  # a view would keep what it is a view of


def mixed_view(source: LabelledCrops, target: Tensor, pseudo: PseudoLabel, rng: StepRandom) -> Mixed:
    pasted = source.label == 0
    image = torch.where(pasted[:, None], source.image, target)
    return Mixed(image, torch.where(pasted, source.label, pseudo.label), pseudo.weight, pasted, ~pasted)


def instance_loss(seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank) -> Tensor:
    return length(seen)


def believe(weight: float = 1.0) -> Believe:
    def regenerate(seen: Prediction, bank: InstanceBank, shares: ClassShares, step: int) -> Belief:
        z = seen.logits.softmax(1)
        return Belief(z, z, ())

    def label(belief: Belief, real_BHW: Tensor) -> PseudoLabel:
        label = belief.semantic.argmax(1)
        return PseudoLabel(label, torch.full(label.shape, weight), label >= 0, torch.tensor(weight))

    return Believe(lambda target, rng: target, regenerate, label)


def test_what_is_believed_has_no_gradient():
    teacher, images = Network(), batch()
    target = believe()(teacher, InstanceBank(torch.arange(C), D, C), ClassShares(C), images, 0, rng())
    assert not target.belief.semantic.requires_grad
    assert torch.equal(target.pseudo.label, teacher(images.target).logits.argmax(1))
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_is_asked_about_the_weak_view():
    teacher, images = Network(), batch()
    believing = believe()
    upside_down = Believe(lambda target, rng: target.flip(2), believing.regenerate, believing.label_target)
    bank = InstanceBank(torch.arange(C), D, C)
    found = upside_down(teacher, bank, ClassShares(C), images, 0, rng())
    flipped = images._replace(target=images.target.flip(2))
    assert torch.equal(found.pseudo.label, believing(teacher, bank, ClassShares(C), flipped, 0, rng()).pseudo.label)


def test_abstaining_asks_nobody():
    assert Abstain()(None, None, None, batch(), 0, rng()) is None


def test_the_mixed_pass_adds_the_gradient_of_its_losses():
    network, images, bank = Network(), batch(), InstanceBank(torch.arange(C), D, C)
    target = believe(weight=0.25)(Network(), bank, ClassShares(C), images, 0, rng())
    found = MixedPass(mixed_view, instance_loss)(network, bank, images, target, rng())
    once = gradients(network)
    network.zero_grad()
    shown = mixed_view(images.source, images.target, target.pseudo, rng())
    seen = network(shown.image)
    cross_entropy = 0.25 * nn.functional.cross_entropy(seen.logits, shown.label)
    (cross_entropy + length(seen)).backward()
    for p, grad in zip(network.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, grad)
    torch.testing.assert_close(found.losses, {"target": cross_entropy.detach(), "instance": length(seen).detach()})
    assert not any(loss.requires_grad for loss in found.losses.values())
    assert all(torch.equal(a, b) for a, b in zip(found.view, shown, strict=True))


@pytest.mark.parametrize("one", [SourcePass, Believe, Abstain, MixedPass], ids=lambda c: c.__name__)
def test_a_pass_has_no_branch(one):
    branches = (ast.If, ast.IfExp, ast.For, ast.While, ast.Match)
    source = ast.parse(inspect.getsource(passes))
    (body,) = [node for node in ast.walk(source) if isinstance(node, ast.ClassDef) and node.name == one.__name__]
    assert not [node.lineno for node in ast.walk(body) if isinstance(node, branches)]
