"""The measurements: the bank itself, what it says of labelled images, and the gradient that it makes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dida.batch import IGNORE, Batch, Belief, Mixed, Prediction
from dida.config import Config, changed
from dida.data.classes import CLASSES, NAMES
from dida.data.labelled_images import LabelledImage
from dida.data.transforms import Normalise
from dida.evaluate import confusion, score
from dida.method import build_method
from dida.method.bank import InstanceBank
from dida.method.discrimination import INSTANCE_PIXELS
from dida.method.views import StepRandom
from dida.state import TrainState
from dida.step import adapt
from dida_kernels import class_similarity
from dida_kernels.equations import enlarge, pseudo_label, scale, self_training_loss, smooth
from eval import percent

POWERS = (0.0, 0.5, 1.0)  # of the class frequency in q_ga; 0 leaves the bank's own, uniform one
GROUPS = {"5 most frequent": slice(5), "7 between": slice(5, 12), "7 rarest": slice(12, CLASSES)}


def number(value: Tensor) -> float | None:
    """With 4 decimals, None for what is not finite (which JSON does not have)."""
    return round(float(value), 4) if math.isfinite(value) else None


# ---- the bank when the loss starts ------------------------------------------------------------------------------


def bank_state(bank: InstanceBank) -> dict[str, float | None]:
    """How full the bank is and how far its classes are apart.

    Slots that still hold the copy of another one are left out: their nearest neighbour would be themselves.
    """
    own_K = bank.place < bank.written[bank.labels]
    unit_MD, label_M = F.normalize(bank.features[own_K], dim=1), bank.labels[own_K]
    cosine_MM = unit_MD @ unit_MD.T
    same_MM = label_M[:, None] == label_M
    itself_MM = torch.eye(len(label_M), dtype=torch.bool, device=label_M.device)
    nearest_M = label_M[cosine_MM.masked_fill(itself_MM, -torch.inf).argmax(1)]
    return {
        "filled": percent(bank.filled),
        "cosine_within": number(cosine_MM[same_MM & ~itself_MM].mean()),
        "cosine_between": number(cosine_MM[~same_MM].mean()),
        "nearest_neighbour": percent((nearest_M == label_M).float().mean()),
    }


# ---- what it says of target val images --------------------------------------------------------------------------


class View(NamedTuple):
    """A batch of images as the teacher sees it; z and the label are at the label's size."""

    label_BHW: Tensor
    z_BCHW: Tensor
    embed_BDhw: Tensor


@torch.no_grad()
def look(network: torch.nn.Module, images: Sequence[LabelledImage], batch_size: int) -> Iterator[View]:
    """Batches of the training's size, because the teacher's batch norm takes its statistics from them.

    Raises ValueError for images of several sizes, which no batch can hold.
    """
    if len({(image.image.shape, image.label.shape) for image in images}) > 1:
        raise ValueError("the images of the target differ in size, so no batch can be made of them")
    device = next(network.parameters()).device
    normalise = Normalise().to(device)
    for first in range(0, len(images), batch_size):
        part = images[first : first + batch_size]
        label_BHW = torch.stack([image.label for image in part]).to(device).long()
        seen = network(normalise(torch.stack([image.image for image in part]).to(device)))
        yield View(label_BHW, enlarge(seen.logits, label_BHW.shape[1:]).softmax(1), seen.embed)


@dataclass
class Tally:
    """Counts of labelled pixels: what a class-level belief says of them, and where it and z are right."""

    confusion_CC: Tensor = field(default_factory=lambda: torch.zeros(CLASSES, CLASSES, dtype=torch.int64))
    right_22: Tensor = field(default_factory=lambda: torch.zeros(2, 2, dtype=torch.int64))  # [z is right][this is]
    confidence: float = 0.0  # sum of the maxima

    def add(self, label_BHW: Tensor, belief_BCHW: Tensor, z_BCHW: Tensor) -> None:
        valid_BHW = label_BHW != IGNORE
        label_N = label_BHW[valid_BHW]
        sure_N, said_N = (x_BHW[valid_BHW] for x_BHW in belief_BCHW.max(1))
        right_N = 2 * (z_BCHW.argmax(1)[valid_BHW] == label_N) + (said_N == label_N).long()
        self.right_22 += torch.bincount(right_N, minlength=4).view(2, 2).cpu()
        self.confusion_CC += confusion(label_N, said_N, CLASSES).cpu()
        self.confidence += float(sure_N.double().sum())

    def report(self, mean_of: int) -> dict[str, float | None]:
        """In percent; mIoU over one of the published numbers of classes."""
        found, (where_wrong_2, where_right_2) = score(self.confusion_CC), self.right_22
        return {
            "mIoU": percent(found.mean_iou[mean_of]),
            "aAcc": percent(found.all_accuracy),
            "mAcc": percent(found.mean_accuracy),
            "confidence": percent(self.confidence / self.right_22.sum()),
            "right_where_z_is_wrong": percent(where_wrong_2[1] / where_wrong_2.sum()),
            "wrong_where_z_is_right": percent(where_right_2[0] / where_right_2.sum()),
        }


def class_level(
    views: Sequence[View], bank: InstanceBank, *, temperatures: Sequence[float], phis: Sequence[float], mean_of: int
) -> dict[str, Any]:
    """z; and per temperature and power of the frequency q_ga and what z-hat it makes (see Eq. (9), (10), Table V)."""
    alone, tallies = Tally(), {}
    frequency_C = torch.cat([view.z_BCHW for view in views]).mean((0, 2, 3))  # no label is needed for it
    for view in views:
        alone.add(view.label_BHW, view.z_BCHW, view.z_BCHW)
        for t in temperatures:
            q_ga_BCHW = class_similarity(
                view.embed_BDhw,
                bank.features,
                bank.labels,
                classes=CLASSES,
                temperature=t,
                size=tuple(view.label_BHW.shape[1:]),
            )
            for power in POWERS:
                lent_BCHW = reweighted(q_ga_BCHW, frequency_C, power)
                for name, belief_BCHW in beliefs(view.z_BCHW, lent_BCHW, phis).items():
                    tally = tallies.setdefault((t, power, name), Tally())
                    tally.add(view.label_BHW, belief_BCHW, view.z_BCHW)
    rows = [
        {"temperature": t, "power": power, "belief": name, **tally.report(mean_of)}
        for (t, power, name), tally in tallies.items()
    ]
    return {"images": sum(len(view.label_BHW) for view in views), "z": alone.report(mean_of), "beliefs": rows}


def reweighted(q_ga_BCHW: Tensor, frequency_C: Tensor, power: float) -> Tensor:
    """q_ga times frequency ** power, renormalised.

    A class-balanced bank holds as much of a pole as of the road, so q_ga knows no class frequency; this lends it one.
    """
    return scale(q_ga_BCHW, (frequency_C**power)[:, None, None])[0]


def beliefs(z_BCHW: Tensor, q_ga_BCHW: Tensor, phis: Sequence[float]) -> dict[str, Tensor]:
    """By name: q_ga itself, z-hat smoothed with every phi, and z-hat scaled (z where their product vanishes)."""
    product_BCHW, defined_BHW = scale(z_BCHW, q_ga_BCHW)
    return {
        "q_ga": q_ga_BCHW,
        **{f"phi {phi:g}": smooth(z_BCHW, q_ga_BCHW, phi) for phi in phis},
        "product": torch.where(defined_BHW[:, None], product_BCHW, z_BCHW),
    }


# ---- how hard L_ins pulls at the embedding ----------------------------------------------------------------------


class Pull(NamedTuple):
    """Gradients at the student's embedding in one step, and the pseudo-labels of the pixels that L_ins counts."""

    target_BDhw: Tensor
    instance_BDhw: Tensor
    label_BHW: Tensor
    counted_BHW: Tensor


def gradient(config: Config, state: TrainState, training: Sequence[Batch]) -> dict[str, Any]:
    """Of L_ins against that of L_tgt, for each choice of pixels; means over the batches, the same for every choice."""
    found = {}
    for choice in INSTANCE_PIXELS:
        of_choice = changed(config, instance_pixels=choice)
        found[choice] = [pull(of_choice, replace(state, step=state.step + i), b) for i, b in enumerate(training)]
    frequency_C = sum(counted(p) for p in found["all"])
    by_frequency = frequency_C.argsort(descending=True, stable=True)
    return {choice: report_pulls(pulls, by_frequency) for choice, pulls in found.items()}


def pull(config: Config, state: TrainState, batch: Batch) -> Pull:
    """Take the target half of a step with an instance loss that looks and adds nothing. Parameters keep no gradient."""
    method = build_method(config, classes=CLASSES, imagenet=None, things=())
    seen = []

    def watch(on_mixed: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank, rng: StepRandom) -> Tensor:
        before = rng.device.get_state()
        counted_BHW = INSTANCE_PIXELS[config.bank.instance_pixels](mixed.valid, mixed.label, rng, classes=CLASSES)
        rng.device.set_state(before)  # so that the loss draws the same
        losses = (
            self_training_loss(on_mixed.logits, mixed.label, mixed.weight),
            method.instance_loss(on_mixed, belief, mixed, bank, rng),
        )
        pulls = (torch.autograd.grad(loss, on_mixed.embed, retain_graph=True)[0] for loss in losses)
        seen.append(Pull(*pulls, pseudo_label(belief.semantic), counted_BHW))
        return on_mixed.logits.new_zeros(())

    adapt(state, batch, replace(method, instance_loss=watch), state.step_rng())
    state.student.zero_grad(set_to_none=True)
    return seen[0]


def counted(pull: Pull) -> Tensor:
    """Pixels that L_ins counts, by pseudo-label, [C]."""
    return torch.bincount(pull.label_BHW[pull.counted_BHW], minlength=CLASSES).double()


def lengths(pull: Pull) -> Tensor:
    """Summed lengths of L_ins's gradient at the nodes of the feature grid, by the pseudo-label there, [C]."""
    length_Bhw = pull.instance_BDhw.norm(dim=1).double()
    label_B1hw = F.interpolate(pull.label_BHW[:, None].float(), size=length_Bhw.shape[1:], mode="nearest-exact")
    return length_Bhw.new_zeros(CLASSES).index_add(0, label_B1hw.flatten().long(), length_Bhw.flatten())


def report_pulls(pulls: Sequence[Pull], by_frequency: Tensor) -> dict[str, Any]:
    """Ratio of norms and cosine; shares of pixels and of gradient by class, and by group of `by_frequency`."""
    ratio_P = torch.stack([p.instance_BDhw.norm() / p.target_BDhw.norm() for p in pulls])
    cosine_P = [F.cosine_similarity(p.instance_BDhw.flatten(), p.target_BDhw.flatten(), dim=0) for p in pulls]
    shares = {}
    for name, of in (("pixels", counted), ("gradient", lengths)):
        total_C = sum(of(p) for p in pulls)
        shares[name] = total_C / total_C.sum()
    return {
        "ratio": number(ratio_P.mean()),
        "ratios": [number(ratio) for ratio in ratio_P],
        "cosine": number(torch.stack(cosine_P).mean()),
        "groups": {
            group: {name: percent(share_C[by_frequency[at]].sum()) for name, share_C in shares.items()}
            for group, at in GROUPS.items()
        },
        "classes": {
            NAMES[c]: {name: percent(share_C[c]) for name, share_C in shares.items()} for c in by_frequency.tolist()
        },
    }
