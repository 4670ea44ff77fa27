"""The training loop: a batch, a step, and what is written down now and then."""

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dida.assemble import Parts
from dida.batch import Batch, Trace
from dida.config import Config, DataConfig
from dida.data import domains
from dida.data.archive import ArchiveError, is_packed
from dida.data.domains import UnlabelledDomain
from dida.data.loader import batches
from dida.errors import NonFinite, UserError
from dida.machine.files import read_metrics
from dida.machine.signals import Signals, Stopped
from dida.optim import rates_at
from dida.options.program import command_line
from dida.precision import products_in
from dida.run.folder import Run
from dida.run.meter import Meter
from dida.run.overview import overview
from dida.run.progress import StepProgress
from dida.run.watch import in_words
from dida.state import latest
from dida.step import train_step
from dida_kernels import choice_lines

CHECKED = os.environ.get("DIDA_DEBUG") == "1"  # hold several processes to each other's bits after every step


def train(config: Config, parts: Parts) -> Path:
    """Train until `config.optim.steps`. Whatever ends the run early between two steps leaves a checkpoint of the last.

    Returns the run folder. Raises Stopped after a signal; FileExistsError or Claimed where the folder is not free,
    ImageFileError, WorkerDied or OSError where data cannot be read or the run not be written, NothingToScore where a
    look finds no label, NonFinite where a step or what is to be saved is not finite. A note of the error says how to
    go on.
    """
    state, method, pairs, _, device, arithmetic, _ = parts
    world, steps = state.world, config.optim.steps
    was_done = state.step >= steps
    with world.together():
        opened = _open(config, parts) if world.leads else None
    folder = world.values(opened.folder if opened else Path())[0]
    with opened or contextlib.nullcontext(), Signals() as signals:
        print(f"run folder {folder}", flush=True)
        print("\n".join([*overview(config, parts), *choice_lines(device, classes=len(parts.class_set))]), flush=True)
        keeper = Keeper(config, parts, opened, folder, signals)
        with (
            keeper.says_how_to_go_on(),
            keeper.progress,
            products_in(arithmetic.precision),
            batches(  # its processes start here, where signals are listened to
                pairs,
                batch_size=config.data.batch_size,
                start=state.step,
                stop=steps,
                workers=config.data.workers,
                device=device,
                world=world,
            ) as stream,
        ):
            while state.step < steps:
                with keeper.between_steps(), world.together(), signals.interrupting():
                    batch, ids = next(stream)
                trace = train_step(state, batch, method)
                keeper.meter.add(state.step, trace, ids, waited=stream.waited)
                with keeper.between_steps():
                    keeper.write_what_is_due(batch, trace)
                    with world.together():
                        signals.raise_caught()
                del trace  # its maps are let go before the next step needs the memory
        if was_done:
            print("nothing was left to do: --resume with a larger --steps extends a finished run")
        print(f"done after step {state.step}; {next_command(folder, config.data, pairs.target)}")
    return folder


def _open(config: Config, parts: Parts) -> Run:
    return Run.resume(config, parts.state.step) if config.resume else Run.start(config, parts.class_set)


class Keeper:
    """Writes down what a run has come to: lines of the log and panels when they are due, and checkpoints.

    Everything that is saved was found finite first. Of several processes one writes, what all were found to hold, and
    all keep the same time.
    """

    def __init__(self, config: Config, parts: Parts, run: Run | None, folder: Path, signals: Signals) -> None:
        """`run`: None in a process that does not write. `folder`: of the run, in all."""
        self._world = parts.state.world
        self.meter = Meter(folder, self._world)
        self._folder = folder
        self.progress = StepProgress(config.optim.steps, parts.state.step)
        self._steps, self._every = config.optim.steps, config.run
        self._parts, self._run, self._signals = parts, run, signals
        self._listing = parts.pairs.listing()
        self._saved = parts.state.step  # the step that is on disk, or the start, where there is nothing to save

    def write_what_is_due(self, batch: Batch, trace: Trace) -> None:
        """After a step. Raises NonFinite, OSError."""
        step, every = self._parts.state.step, self._every
        saves = due(step, every.save_every) or step == self._steps
        looks, draws = due(step, every.eval_every), due(step, every.panel_every)
        logs = due(step, every.log_every) or saves or looks
        if saves or CHECKED:
            self._require_same()
        if not (logs or draws):
            return
        scalars = self._flushed() if logs else None
        with self._world.together():
            if self._run and scalars:
                seen: dict[str, float] = {}
                try:
                    seen = self._look(self._run) if looks else {}
                finally:  # a look that fails or is given up costs no line
                    self._log(self._run, scalars | seen)
            if self._run and draws:
                path = self._folder / "panels" / f"step_{step:06d}.png"
                self._parts.panel.save(path, batch, trace, self._parts.state.bank)
            if self._run and saves:
                self._save(self._run)
        self._saved = step if saves else self._saved

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Here the state is whole: whatever ends the run in this block, it is saved first, unless that is why."""
        try:
            yield
        except (Stopped, Exception) as error:
            may_save = self._world.ended_together and not isinstance(error, NonFinite)
            if may_save and self._saved < self._parts.state.step:
                self._require_same()
                scalars = self._flushed()
                with self._world.together():
                    if self._run and scalars:
                        with contextlib.suppress(OSError, UserError):  # what cannot be written is said once, at first
                            self._log(self._run, scalars)
                    if self._run:
                        self._save(self._run)
                self._saved = self._parts.state.step
            raise

    @contextmanager
    def says_how_to_go_on(self) -> Iterator[None]:
        """What ends the run in this block gets a note of the checkpoint to go on from; a signal says it itself."""
        try:
            yield
        except Stopped as stopped:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"{stopped.kind.name} after step {self._parts.state.step}{self._way_on()}", flush=True)
            raise
        except Exception as error:
            error.add_note(f"stopped after step {self._parts.state.step}{self._way_on(error)}")
            raise

    def _require_same(self) -> None:
        self._world.require_same(self._parts.state.tensors(), f"after step {self._parts.state.step}")

    def _flushed(self) -> dict[str, float] | None:
        """What the log says of the steps since it was last written, None if there were none. Waits for the device."""
        if not len(self.meter):
            return None
        state = self._parts.state
        used = rates_at(state.schedule, state.step - 1)  # by the last step; the schedule is at the next one
        return self.meter.flush(lr=used, bank_fill=state.bank.filled)

    def _log(self, run: Run, scalars: dict[str, float]) -> None:
        step = self._parts.state.step
        run.log(step, scalars)
        self.progress.say(step, scalars)

    def _look(self, run: Run) -> dict[str, float]:
        watch, state = self._parts.watch, self._parts.state
        assert watch is not None  # `assemble` makes one where there is anything to look at
        start = time.perf_counter()
        with self._signals.interrupting():  # it takes longer than some systems wait, and changes nothing
            found = watch.look({"student": state.student, "teacher": state.teacher}, list(read_metrics(run.metrics)))
        self.meter.leave_out(time.perf_counter() - start)
        self.progress.tell(in_words(found))
        return found

    def _save(self, run: Run) -> None:
        state, classes = self._parts.state, self._parts.class_set.to_dict()
        state.save(run.folder, run.config, classes, self._listing, keep=self._every.keep)

    def _way_on(self, error: Exception | None = None) -> str:
        folder, step = self._folder, self._parts.state.step
        if not self._saved and isinstance(error, NonFinite):
            return f", nothing is saved yet; {folder} keeps what was found, so start again with another --out"
        if not self._saved:
            return ", nothing is saved yet; the same command starts again"
        kept = "saved" if self._saved == step else f"{latest(folder).name} is the last that was saved"
        return f", {kept}; continue with\n    {command_line('train')} --resume {shlex.quote(str(folder))}"


def next_command(run: Path, data: DataConfig, target: UnlabelledDomain) -> str:
    """What to do with a finished run: score it where the target has labels to score on, else look at its pictures.

    Labels are not looked at while training, only asked whether their folder is there. An own folder may have some, and
    they may be of other classes.
    """
    ask = f"{command_line('eval')} {shlex.quote(str(run))}"
    own = data.tgt.startswith("folder:")
    if not own and _has_labels(data):
        return f"score it with\n    {ask} --tgt {data.tgt}"
    places = [path.parent for path in target.images]
    if is_packed(places[0]):
        return f"see what it makes of pictures with\n    {ask} --images PICTURES"
    pictures = shlex.quote(os.path.commonpath(places) if own else str(places[0]))
    return f"see what it makes of pictures with\n    {ask} --images {pictures}"


def _has_labels(data: DataConfig) -> bool:
    with contextlib.suppress(OSError, ArchiveError):  # of a download that is not there as a whole; a run needs none
        return domains.has_labels(data.tgt, data.data_root, "val")
    return False


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after step `step`."""
    return every > 0 and step % every == 0
