"""What a step pays for being watched: blocks of steps in turn, with and without what looks for faults.

Watched, a step has its two norms, may be left by a signal and by what ends a run between two steps, and its numbers
are found finite at the end of the block, as the log does it. Both blocks are of one process and one state, on one
batch; processor time of the one thread is counted, which what else the machine does hardly changes.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from dida import step as step_module
from dida.assemble import Parts, assemble, join
from dida.data.loader import batches
from dida.loop import Keeper
from dida.machine.distributed import ALONE
from dida.machine.signals import Signals
from dida.recipes import from_command_line
from dida.run.provenance import machine, source_digest
from dida.step import train_step
from tests.faults.scripts import make_toy

__all__ = ["ratios", "told_of"]
STEPS = 2  # of a block
OPTIONS = {"device": "cpu", "workers": 0, "weights": "none", "bank_start": 1, "bank_fill": 1}


def ratios(folder: Path, pairs: int) -> list[float]:
    """Watched over unwatched, of each pair of blocks that follow each other; which is first changes in turn."""
    torch.set_num_threads(1)
    given = [part for name, value in OPTIONS.items() for part in ("--" + name.replace("_", "-"), str(value))]
    toy = ["--src", "toy-gta5", "--tgt", "toy-cityscapes", "--method", "dida", "--data-root", str(make_toy(folder))]
    config = from_command_line([*toy, *given])
    parts = join(assemble(config, ALONE))
    keeper = Keeper(config, parts, None, folder)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        size, device = config.data.batch_size, torch.device("cpu")
        stream = stack.enter_context(batches(parts.pairs, batch_size=size, start=0, stop=2, workers=0, device=device))
        batch, ids = next(stream)

        def block(watched: bool) -> float:
            method = parts.method
            with contextlib.ExitStack() as changes:
                if not watched:
                    changes.enter_context(mock.patch.object(step_module, "weight_norm", return_value=torch.zeros(())))
                    method = replace(method, clip_gradient=lambda model: torch.zeros(()))
                begin = time.process_time()
                for _ in range(STEPS):
                    with _left_where_it_may_end(keeper, signals) if watched else contextlib.nullcontext():
                        pass
                    trace = train_step(parts.state, batch, method)
                    if watched:
                        keeper.meter.add(parts.state.step, trace, ids, waited=0.0)
                if watched:
                    _look(keeper, parts)
                return time.process_time() - begin

        block(True), block(False)  # caches, and the bank's first vectors
        found = []
        for number in range(pairs):
            seconds = {watched: block(watched) for watched in ((True, False) if number % 2 else (False, True))}
            found.append(seconds[True] / seconds[False])
            print(f"pair {number + 1}: {seconds[True]:.3f} s watched, {seconds[False]:.3f} s not", flush=True)
        return found


@contextlib.contextmanager
def _left_where_it_may_end(keeper: Keeper, signals: Signals) -> Iterator[None]:
    with keeper.between_steps(), ALONE.together(), signals.interrupting():
        yield


def _look(keeper: Keeper, parts: Parts) -> None:
    keeper.meter.flush(lr=parts.state.schedule.get_last_lr(), bank_fill=parts.state.bank.filled)


def told_of(found: list[float]) -> str:
    """As Markdown."""
    about, ordered = machine(), sorted(found)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    return (
        f"Processor time of a step with over without what watches it: median **{statistics.median(found):.4f}**, half "
        f"of the pairs between {low:.4f} and {high:.4f}; {len(found)} pairs of {STEPS} steps each, on the toy at its "
        f"default size, one thread. {about['cpu']}, torch {about['torch']}, source {source_digest()}.\n"
    )
