"""How a run does before its end, looked at now and then (`--eval-every`), without labels of the target.

Of the source the score, on pictures that it does not train on where it has some: it says whether the networks still
know what they were taught. Of the target's training pictures what they say without a label: how far student and
teacher agree, how unsure the student is, how much of the picture the teacher is surer of than the threshold, which
share it gives every class, how much these shares have moved since the last look, and how many classes they amount to.
Labels of the target are read only where a run asks for it by name (`--eval-target-labels`): whoever chooses by them
has used them.

Looking changes nothing of the run: networks are put back into the mode they were in, and nothing is drawn.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dida.config import Config
from dida.data import domains
from dida.data.classes import ClassSet
from dida.data.domains import LabelledDomain, UnlabelledDomain
from dida.data.labelled_images import LabelledImages
from dida.data.pictures import Pictures
from dida.data.sources import Sources
from dida.data.transforms import Normalise
from dida.data.workers import ReadAhead
from dida.options import parse_size
from dida.run.terms import SHARE, WATCH
from dida.use.evaluate import WHOLE_IMAGE, class_scores, evaluate, evaluating
from dida_kernels.equations import confident

_log = logging.getLogger(__name__)

PICTURES = 100  # of each domain, evenly spaced: a look takes seconds, and sees the same pictures each time
COLLAPSED = 0.5  # classes left, as a share of the most there were, below which the run is warned of


class Watch(NamedTuple):
    """What is looked at: pictures of val splits with labels, and pictures of the target without."""

    scored: tuple[LabelledImages, ...]
    pictures: Pictures
    class_set: ClassSet
    threshold: float  # of a pseudo-label's confidence
    workers: int

    def look(self, networks: dict[str, nn.Module], earlier: Sequence[dict[str, float]]) -> dict[str, float]:
        """Scalars by name, shares in [0, 1]. `networks`: student and teacher. `earlier`: the log, oldest line first.

        Warns where the predictions of the target collapse. Raises ImageFileError for a picture that cannot be read.
        """
        # Blocks that are compiled for the crops of training are not compiled again for every size of picture.
        with torch.compiler.set_stance("force_eager"):
            return self._look(networks, earlier)

    def _look(self, networks: dict[str, nn.Module], earlier: Sequence[dict[str, float]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for images in self.scored:
            at = f"{WATCH}{images.domain.name}_{images.domain.split}/"
            declared = images.domain.declared
            result = evaluate(networks, images, self.class_set, declared=declared, workers=self.workers)
            found |= {f"{at}{name}": scores.mean_iou[len(declared)] for name, scores in result.scores.items()}
        found |= self._unlabelled(networks["student"], networks["teacher"])
        before = [line for line in earlier if WATCH + "classes" in line]
        if before:
            found[WATCH + "drift"] = sum(abs(found[name] - before[-1].get(name, 0.0)) for name in self._shares()) / 2
            self._warn_of_collapse(found, max(line[WATCH + "classes"] for line in before))
        return found

    def _shares(self) -> list[str]:
        return [SHARE + name for name in self.class_set.names]

    def _unlabelled(self, student: nn.Module, teacher: nn.Module) -> dict[str, float]:
        device = next(student.parameters()).device
        normalise, C = Normalise().to(device), len(self.class_set)
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # of agreeing and of confident pixels, and of entropy
        said_C = torch.zeros(C, dtype=torch.int64, device=device)
        order = range(len(self.pictures))
        with (
            ReadAhead(self.pictures, order, batch_size=None, workers=self.workers, pin_memory=False) as samples,
            evaluating(student, teacher),
        ):
            for sample in samples:
                image = normalise(sample.scaled.to(device))[None]
                one, other = (class_scores(network, image, WHOLE_IMAGE)[0].float() for network in (student, teacher))
                sums += _told_apart(one, other, self.threshold)
                said_C += torch.bincount(other.argmax(0).flatten(), minlength=C)
        pixels = int(said_C.sum())
        agreement, confident, entropy = (sums / pixels).tolist()
        share_C = (said_C.double() / pixels).tolist()
        found = {"agreement": agreement, "confident": confident, "entropy": entropy, "classes": amount(share_C)}
        return {WATCH + name: x for name, x in found.items()} | dict(zip(self._shares(), share_C, strict=True))

    def _warn_of_collapse(self, found: dict[str, float], most: float) -> None:
        left = found[WATCH + "classes"]
        if left < COLLAPSED * most:
            shares = sorted(self.class_set.names, key=lambda name: -found[SHARE + name])[:3]
            _log.warning(
                "the target's pictures are labelled with %.1f classes in effect, of %.1f at an earlier look; most of "
                "them is %s: self-training may have collapsed, look at the panels",
                left, most, ", ".join(shares),
            )  # fmt: skip


def _told_apart(one_CHW: Tensor, other_CHW: Tensor, threshold: float) -> Tensor:
    """[3] float64: pixels on which two networks agree, of which the other is surer than `threshold`, and the entropy of
    the first one summed, as a share of the most there can be."""
    log_CHW = one_CHW.log_softmax(0)
    entropy = -(log_CHW.exp() * log_CHW).sum(dtype=torch.float64) / math.log(max(len(one_CHW), 2))
    agree = (one_CHW.argmax(0) == other_CHW.argmax(0)).sum()
    sure = confident(other_CHW.softmax(0).amax(0)[None], threshold).sum()
    return torch.stack([agree.double(), sure.double(), entropy])


def in_words(found: dict[str, float]) -> str:
    """A line for people."""
    ends = ("/student", "/teacher")  # not the number of /: an own folder has some in its name
    scores = [
        f"{name.removeprefix(WATCH)} {100 * x:.2f}"
        for name, x in found.items()
        if name.endswith(ends) and not name.startswith(SHARE)
    ]
    signals = [
        f"student and teacher agree on {found[WATCH + 'agreement']:.0%} of the target",
        f"confident {found[WATCH + 'confident']:.0%}", f"entropy {found[WATCH + 'entropy']:.0%}",
        f"{found[WATCH + 'classes']:.1f} classes in effect",
    ]  # fmt: skip
    if WATCH + "drift" in found:
        signals.append(f"drift {found[WATCH + 'drift']:.1%}")
    return "  ".join([*(["mIoU " + ", ".join(scores)] if scores else []), ", ".join(signals)])


def amount(shares: Iterable[float]) -> float:
    """How many equally frequent classes shares amount to: exp of their entropy."""
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def build_watch(config: Config, source: LabelledDomain | Sources, target: UnlabelledDomain) -> Watch:
    """What `config` lets be looked at. Raises OSError or ValueError for labels that are asked for and are not there."""
    data, class_set = config.data, source.class_set
    parts = source.parts if isinstance(source, Sources) else (source,)
    scored = [_some(_kept_apart(part, config), class_set, data.src_size, config) for part in parts]
    if config.run.eval_target_labels:
        scored.append(_some(domains.labelled(data.tgt, data.data_root, "val"), class_set, data.tgt_size, config))
    pictures = Pictures(list(_spaced(target.images)), parse_size(data.tgt_size, option="--tgt-size"),
                        enlarge=data.enlarge)  # fmt: skip
    return Watch(tuple(scored), pictures, class_set, config.teach.threshold, data.workers)


def _kept_apart(source: LabelledDomain, config: Config) -> LabelledDomain:
    """Pictures of a source that it does not train on; of one without a val split, such as GTA5, those that it does."""
    root = config.data.data_root
    for name in (source.name, f"{source.name}-val"):
        if (name == source.name or name in domains.DOMAINS) and domains.has_labels(name, root, "val"):
            found = domains.labelled(name, root, "val")
            if set(found.images).isdisjoint(source.images):  # of an own folder without splits they are the same
                return found
    return source


def _some(domain: LabelledDomain, class_set: ClassSet, size: str, config: Config) -> LabelledImages:
    seen = domain.seen_as(class_set)
    return LabelledImages(seen.only(_spaced(range(len(seen.images)))), parse_size(size, option="--src-size"),
                          enlarge=config.data.enlarge)  # fmt: skip


def _spaced(items: Sequence) -> Sequence:
    """At most `PICTURES` of them, evenly spaced."""
    if len(items) <= PICTURES:
        return items
    return [items[i * len(items) // PICTURES] for i in range(PICTURES)]
