"""The training loop: a batch, a step, and what is written down now and then."""

from pathlib import Path

from dida.assemble import Parts
from dida.config import Config
from dida.data.loader import batches
from dida.data.same_files import FILE, file_digests
from dida.files import write_json
from dida.meter import Meter
from dida.run import Run
from dida.signals import Signals
from dida.step import train_step
from dida_kernels import choice_lines


def train(config: Config, parts: Parts) -> Path:
    """Train until `config.optim.steps`; a signal ends the run early with a checkpoint to resume from.

    Returns the run folder. Raises FileExistsError where it holds something, ImageFileError where a file cannot be read,
    NonFiniteLoss where a loss is not finite.
    """
    state, method, pairs, panel, device = parts
    steps, every = config.optim.steps, config.run
    run = Run.resume(config, state.step) if config.resume else Run.start(config, parts.class_set)
    write_json(run.folder / FILE, file_digests(pairs))
    print(f"run folder {run.folder}", flush=True)
    print("\n".join(choice_lines(device, classes=len(parts.class_set))), flush=True)
    signals, meter = Signals(), Meter(run.folder)
    stream = batches(
        pairs,
        batch_size=config.data.batch_size,
        start=state.step,
        stop=steps,
        workers=config.data.workers,
        device=device,
    )
    for batch, ids in stream:
        trace = train_step(state, batch, method)
        meter.add(state.step, trace, ids, waited=stream.waited)
        stop = signals.caught  # read once: a signal may arrive at any line, and then counts after the next step
        saves = due(state.step, every.save_every) or state.step == steps or stop
        if due(state.step, every.log_every) or saves:  # what is saved was first found finite
            scalars = meter.flush(lr=state.schedule.get_last_lr(), bank_fill=state.bank.filled)  # the only host sync
            run.log(state.step, scalars)
            print(run.line(state.step, steps, scalars), flush=True)
        if due(state.step, every.panel_every):
            panel.save(run.folder / "panels" / f"step_{state.step:06d}.png", batch, trace, state.bank)
        if saves:
            state.save(run.folder, run.config, parts.class_set.to_dict())
        if stop:
            print(f"{stop} after step {state.step}, saved; continue with")
            print(f"    python train.py --resume {run.folder}")
            return run.folder
        del trace  # its maps are let go before the next step needs the memory
    print(f"done after step {state.step}; score it with")
    print(f"    python eval.py {run.folder} --tgt {config.data.tgt}")
    return run.folder


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after step `step`."""
    return every > 0 and step % every == 0
