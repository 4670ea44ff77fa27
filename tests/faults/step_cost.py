"""What a step pays for being watched: what looks for faults, timed beside the steps that it looks at.

Watched, a step has its two norms, may be left by a signal and by what ends a run between two steps, and its numbers
are found finite when the log is written. That is a hundredth of a step or less, and steps one by one differ by more:
so both are timed in turn, the watching many times over, in processor time of one thread, which what else the machine
does hardly changes.
"""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch

from dida.assemble import Parts, assemble, join
from dida.batch import Trace
from dida.data.loader import Ids, batches
from dida.loop import Keeper
from dida.machine.distributed import ALONE
from dida.machine.signals import Signals
from dida.optim import gradient_norm, rates_at, weight_norm
from dida.recipes import from_command_line
from dida.step import train_step
from tests.faults.scripts import make_toy
from tests.page_block import tried_on

__all__ = ["Pair", "pairs_of", "told_of"]
OFTEN = 20  # times that a step is watched while one is taken
OPTIONS = {"device": "cpu", "workers": 0, "weights": "none", "bank_start": 1, "bank_fill": 1}


class Pair(NamedTuple):
    """Seconds of processor time of a step, watched, and of the watching alone."""

    step: float
    watching: float

    @property
    def ratio(self) -> float:
        """A watched step over one that is not."""
        return self.step / (self.step - self.watching)


def pairs_of(folder: Path, count: int) -> list[Pair]:
    """Steps of DIDA on the toy at its default size, after two that warm up."""
    torch.set_num_threads(1)
    given = [part for name, value in OPTIONS.items() for part in ("--" + name.replace("_", "-"), str(value))]
    toy = ["--src", "toy-gta5", "--tgt", "toy-cityscapes", "--method", "dida", "--data-root", str(make_toy(folder))]
    config = from_command_line([*toy, *given])
    parts = join(assemble(config, ALONE))
    size, device, found = config.data.batch_size, torch.device("cpu"), []
    with Signals() as signals, batches(parts.pairs, batch_size=size, start=0, stop=1, workers=0, device=device) as few:
        keeper = Keeper(config, parts, None, folder, signals)
        batch, ids = next(few)
        for _ in range(2):
            trace = train_step(parts.state, batch, parts.method)
        for number in range(count):
            begin = time.process_time()
            trace = train_step(parts.state, batch, parts.method)
            between = time.process_time()
            for parameter in parts.state.student.parameters():
                parameter.grad = parameter.detach()  # of its size; a step lets go of its own
            since = time.process_time()
            for _ in range(OFTEN):
                _watch(keeper, signals, parts, trace, ids)
            found.append(Pair(between - begin, (time.process_time() - since) / OFTEN))
            parts.state.optimizer.zero_grad(set_to_none=True)
            print(f"step {number + 1}: {found[-1].step:.3f} s, watching {1e3 * found[-1].watching:.2f} ms", flush=True)
    return found


def _watch(keeper: Keeper, signals: Signals, parts: Parts, trace: Trace, ids: Ids) -> None:
    with keeper.between_steps(), ALONE.together(), signals.interrupting():
        pass
    norms = gradient_norm(parts.state.student), weight_norm(parts.state.student)
    keeper.meter.add(parts.state.step, trace._replace(gradient_norm=norms[0], weight_norm=norms[1]), ids, waited=0.0)
    keeper.meter.flush(lr=rates_at(parts.state.schedule, parts.state.step - 1), bank_fill=parts.state.bank.filled)


def told_of(pairs: list[Pair]) -> str:
    """As Markdown."""
    ratios = sorted(pair.ratio for pair in pairs)
    step, watching = (statistics.median(pair[i] for pair in pairs) for i in range(2))
    return (
        f"A step that is watched over one that is not: median **{statistics.median(ratios):.4f}**, {ratios[0]:.4f} to "
        f"{ratios[-1]:.4f} in {len(pairs)} pairs; {1e3 * watching:.1f} ms of watching in steps of {step:.2f} s, on the "
        f"toy at its default size, one thread. {tried_on()}.\n"
    )
