"""Training that is told the target's true labels: how much is there to be gained?

    python -m bench.told semantic --src toy-gta5 --tgt toy-cityscapes --method daformer ...     options of train.py

A level that is told has the truth in the place of the teacher's own class-level prediction: at level `semantic` z-hat
is one-hot, so every pseudo-label is right; at level `instance` it scales q-hat, so each pixel of L_ins is compared with
slots of its own class; `both` does both. All else is as it is, confidence and weights included. No method could know
this: what it gains bounds what any correction of the labels can (rows of the table `limits`, see bench/tables/rows.py).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.tables.trainings import require_told
from dida.assemble import Parts, assemble
from dida.batch import IGNORE, Belief, Prediction
from dida.command import USER_ERRORS, USER_ERRORS_OF_READING, say_what_is_logged, told_in_one_line
from dida.data import domains
from dida.data.domains import LabelledDomain, UnlabelledDomain
from dida.data.pairs import Pairs
from dida.data.scaled_files import Scaled, ScaledFiles, Size
from dida.loop import train
from dida.machine.signals import Signals, Stopped
from dida.machine.streams import standard_streams
from dida.method.bank import InstanceBank
from dida.method.passes import Believe
from dida.method.prior import ClassShares
from dida.recipes import from_command_line, oracle
from dida.state import run_folder

LEVELS = {"semantic": (True, False), "instance": (False, True), "both": (True, True)}  # z-hat, q-hat


class LabelsAsPictures(ScaledFiles):
    """Reads a domain's labels where its pictures are asked for, so that they are cut as those are."""

    def __init__(self, domain: LabelledDomain) -> None:
        self._encodings = {path: domain.encoding(i) for i, path in enumerate(domain.labels)}

    def image(self, path: Path, scale: Size, *, enlarge: bool) -> Scaled:
        """Train ids, three times. Raises ImageFileError."""
        label = self.label(path, self._encodings[path], scale, enlarge=enlarge)
        return label._replace(pixels=label.pixels[..., None].repeat(3, axis=2))


class TrueLabels:
    """The labels of the target crops of any step."""

    def __init__(self, pairs: Pairs, labelled: LabelledDomain, batch_size: int) -> None:
        """`pairs` draws the crops. Raises ValueError where its target's pictures are not those that have labels."""
        names = [[path.name for path in domain.images] for domain in (pairs.target, labelled)]
        if names[0] != names[1]:
            raise ValueError(f"{labelled.name} does not have the labels of the pictures of {pairs.target.name}")
        target = UnlabelledDomain(labelled.name, labelled.split, labelled.folder, labelled.labels)
        self._batch_size = batch_size
        self._pairs = Pairs(  # draws of the target depend on no source, so any will do
            replace(labelled, images=labelled.labels),
            target,
            seed=pairs.seed,
            source_view=pairs.target_view,
            target_view=pairs.target_view,
            reader=LabelsAsPictures(labelled),
        )

    def __call__(self, step: int) -> Tensor:
        """[B, H, W] int64: 0 .. C-1, or 255, which padding is as well."""
        samples = [self._pairs[step * self._batch_size + i] for i in range(self._batch_size)]
        return torch.stack(
            [torch.where(sample.target_real, sample.target_image[0].long(), IGNORE) for sample in samples]
        )


@dataclass(frozen=True)
class Told:
    """A rule of regeneration, corrected; where nobody labelled a pixel its z stays."""

    regenerate: Callable[[Prediction, InstanceBank, ClassShares, int], Belief]
    truth: Callable[[int], Tensor]
    semantic: bool
    instance: bool

    def __call__(self, seen: Prediction, bank: InstanceBank, shares: ClassShares, step: int) -> Belief:
        belief = self.regenerate(seen, bank, shares, step)
        label_BHW = self.truth(step).to(belief.z.device)
        labelled_BHW = label_BHW != IGNORE
        true_BHWC = F.one_hot(torch.where(labelled_BHW, label_BHW, 0), belief.z.shape[1])
        true_BCHW = torch.where(labelled_BHW[:, None], true_BHWC.movedim(3, 1).to(belief.z.dtype), belief.z)
        if self.semantic:
            belief = belief._replace(semantic=true_BCHW)
        if self.instance:
            belief = belief._replace(terms=tuple(term._replace(factor=true_BCHW) for term in belief.terms))
        return belief


def told_parts(parts: Parts, labelled: LabelledDomain, batch_size: int, level: str) -> Parts:
    """The parts of a run that is told. Raises ValueError for a method that never looks at the target."""
    believe = parts.method.believe
    if not isinstance(believe, Believe):
        raise ValueError("this method has no pseudo-labels, so nothing can be told to it")
    semantic, instance = LEVELS[level]
    truth = TrueLabels(parts.pairs, labelled, batch_size)
    told = replace(believe, regenerate=Told(believe.regenerate, truth, semantic, instance))
    return parts._replace(method=replace(parts.method, believe=told))


def main(args: list[str]) -> None:
    """Train, in one process. Exit status as that of train.py; it is this program that resumes such a run."""
    program = "bench.told"
    level, *options = args or [""]
    if level not in LEVELS:
        sys.exit(f"{program}: {level!r} is no level; expected one of {', '.join(LEVELS)}, then options of train.py")
    config = from_command_line(options, program)
    say_what_is_logged()
    with told_in_one_line(program, *USER_ERRORS_OF_READING, debug=config.debug):
        if config.resume:
            require_told(run_folder(config.resume), level)
        parts = assemble(config)
        labelled = domains.labelled(oracle(config).data.src, config.data.data_root, "train").seen_as(parts.class_set)
        parts = told_parts(parts, labelled, config.data.batch_size, level)
    with told_in_one_line(program, *USER_ERRORS, debug=config.debug):
        try:
            train(config, parts)
        except Stopped:
            print(f"it was told: not train.py but {program} {level} goes on with it", flush=True)
            raise


if __name__ == "__main__":
    with standard_streams(), Signals() as signals, signals.interrupting():
        main(sys.argv[1:])
