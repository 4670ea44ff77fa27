"""Train on a labelled source and an unlabelled target.

python train.py --src gta5 --tgt cityscapes                 DIDA with the paper's settings
python train.py --src synthia --method daformer             the baseline it builds on
python train.py --src toy-gta5 --tgt toy-cityscapes         the embedded toy benchmark, on a laptop
python train.py --check-data --src gta5 --tgt cityscapes    is the data in order?
python train.py --resume runs/...                           continue where a run stopped
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dida import recipes
from dida.config import MAY_CHANGE, Config, flat, from_dict, option, parse_size, read

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dida.data.pairs import Pairs
    from dida.method import Method
    from dida.state import TrainState


def train(config: Config, state: TrainState, method: Method, pairs: Pairs, device: torch.device) -> Path:
    """Train until `config.optim.steps`; a signal ends the run early with a checkpoint to resume from.

    Returns the run folder. Raises FileExistsError where it holds something, ImageFileError where a file cannot be read,
    NonFiniteLoss where a loss is not finite.
    """
    from dida.data.pairs import batches
    from dida.panel import save_panel
    from dida.run import Meter, Run, Signals
    from dida.step import train_step

    run = Run.resume(config, state.step) if config.resume else Run.start(config)
    print(f"run folder {run.folder}", flush=True)
    signals, meter = Signals(), Meter(run.folder)
    stream = batches(
        pairs,
        batch_size=config.data.batch_size,
        start=state.step,
        stop=config.optim.steps,
        workers=config.data.workers,
        device=device,
    )
    for batch, ids in stream:
        trace = train_step(state, batch, method)
        meter.add(state.step, trace, ids, waited=stream.waited)
        stop = signals.caught  # read once: a signal may arrive at any line, and then counts after the next step
        saves = due(state.step, config.run.save_every) or state.step == config.optim.steps or stop
        if due(state.step, config.run.log_every) or saves:  # what is saved was first found finite
            scalars = meter.flush(lr=state.schedule.get_last_lr(), bank_fill=state.bank.filled)  # the only host sync
            run.log(state.step, scalars)
            print(run.line(state.step, config.optim.steps, scalars), flush=True)
        if due(state.step, config.run.panel_every):
            save_panel(run.folder / "panels" / f"step_{state.step:06d}.png", batch, trace, state.bank, config)
        if saves:
            state.save(run.folder, run.config)
        if stop:
            print(f"{stop} after step {state.step}, saved; continue with")
            print(f"    python train.py --resume {run.folder}")
            return run.folder
    print(f"done after step {state.step}; score it with")
    print(f"    python eval.py {run.folder} --tgt {config.data.tgt}")
    return run.folder


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after step `step`."""
    return every > 0 and step % every == 0


def assemble(config: Config) -> tuple[TrainState, Method, Pairs, torch.device]:
    """The one place where the config meets classes: state, method, data and device of a run."""
    import torch

    from dida.command import find_device
    from dida.data.classes import CLASSES, THINGS
    from dida.method import build_method
    from dida.method.bank import InstanceBank
    from dida.method.sampling import slot_labels
    from dida.method.teacher import as_teacher
    from dida.optim import build_optimizer, build_schedule
    from dida.state import TrainState, latest, load_checkpoint

    device = find_device(config.run.device)
    pairs, pixels_C = build_pairs(config)
    torch.manual_seed(config.run.seed)
    student, imagenet = build_networks(config, device)
    slots_K = slot_labels(config.bank.sampling, config.bank.bank_size, torch.from_numpy(pixels_C))
    bank = InstanceBank(slots_K, config.model.embed_dim, CLASSES)
    if config.bank.bank_init == "random":
        bank.fill_random(torch.Generator().manual_seed(config.run.seed))
    optimizer = build_optimizer(
        student,
        lr=config.optim.lr,
        head_lr_factor=config.optim.head_lr_factor,
        weight_decay=config.optim.weight_decay,
    )
    state = TrainState(
        student=student,
        teacher=as_teacher(student, config.teach.teacher_norm),
        bank=bank.to(device),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, steps=config.optim.steps, warmup=config.optim.warmup),
        seed=config.run.seed,
    )
    if config.resume:
        state.load(load_checkpoint(latest(config.resume)))
    return state, build_method(config, classes=CLASSES, imagenet=imagenet, things=THINGS), pairs, device


def build_networks(config: Config, device: torch.device) -> tuple[torch.nn.Module, torch.nn.Module | None]:
    """The student, and the frozen encoder of the feature distance where there are ImageNet weights to stay close to."""
    import copy

    from dida.data.classes import CLASSES
    from dida.models.pretrained import load_backbone
    from dida.models.segmentor import Segmentor
    from dida.state import latest, load_checkpoint, load_weights

    student = Segmentor(config.model.backbone, CLASSES, config.model.embed_dim, config.model.drop_path)
    print(load_backbone(student.backbone, config.model.backbone, config.model.weights), flush=True)
    imagenet = None
    if config.teach.feature_weight > 0 and config.model.weights != "none":
        imagenet = copy.deepcopy(student.backbone).to(device)
    elif config.teach.feature_weight > 0:
        print("feature distance off: with --weights none there are no ImageNet features to stay close to", flush=True)
    if config.model.init and not config.resume:  # a resumed run has weights of its own
        start = latest(config.model.init)
        expected = f"{config.model.backbone} with --embed-dim {config.model.embed_dim}"
        load_weights(student, load_checkpoint(start)["student"], source=f"--init {start}", expected=expected)
    return student.to(device).train(), imagenet


def build_pairs(config: Config) -> tuple[Pairs, np.ndarray]:
    """The endless stream of samples, and the source's pixels per class [C]."""
    from dida.data import domains
    from dida.data.pairs import Pairs, View
    from dida.data.rare_class import rare_classes
    from dida.data.statistics import class_statistics

    data = config.data
    source = domains.labelled(data.src, data.data_root, "train")
    target = domains.unlabelled(data.tgt, data.data_root, "train")
    pixels_FC = class_statistics(source).pixels
    rare = None
    if data.rare_class_sampling:
        rare = rare_classes(
            pixels_FC,
            temperature=data.rare_class_temperature,
            min_pixels=data.rare_class_pixels,
            min_crop_ratio=data.rare_class_crop_share,
        )
    crop = (data.crop, data.crop)
    pairs = Pairs(
        source,
        target,
        seed=config.run.seed,
        source_view=View(parse_size(data.src_size, option="--src-size"), crop, data.max_class_share),
        target_view=View(parse_size(data.tgt_size, option="--tgt-size"), crop),
        rare_classes=rare,
    )
    return pairs, pixels_FC.sum(0)


def check_data(config: Config) -> bool:
    """Read every file that training would read and print what is wrong. True if nothing is."""
    from dida.data import domains
    from dida.data.check import check_labelled, check_unlabelled

    root = config.data.data_root
    reports = [
        check_labelled(domains.survey(config.data.src, root, "train")),
        check_unlabelled(domains.unlabelled(config.data.tgt, root, "train")),
    ]
    print("\n".join(str(report) for report in reports))
    return all(report.ok for report in reports)


def command_line(args: list[str]) -> Config:
    """The config of a new run, or of the run to resume. Exits with a message where options do not fit."""
    resume = option(args, "resume", "")
    if not resume:
        return recipes.from_command_line(args)
    try:
        saved = from_dict(json.loads((Path(resume) / "config.json").read_text()))
    except (FileNotFoundError, NotADirectoryError):
        sys.exit(f"train.py: --resume {resume}: no run folder, there is no config.json in it")
    except ValueError as error:
        sys.exit(f"train.py: --resume {resume}: {error}")
    config = read(args, saved, "train.py")
    before, after = flat(saved), flat(config)
    if other := {name for name in before if before[name] != after[name]} - MAY_CHANGE - {"resume"}:
        sys.exit(
            f"train.py: --resume continues a run as it was configured; {', '.join(sorted(other))} cannot change "
            f"(only {', '.join(sorted(MAY_CHANGE))} can)"
        )
    return config


def main(args: list[str]) -> None:
    """The command. What a user can put right ends it with one message, anything else with a traceback."""
    config = command_line(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if config.check_data:
            sys.exit(0 if check_data(config) else 1)
        parts = assemble(config)
    except (OSError, ValueError) as error:  # data, weights or options that do not fit
        sys.exit(f"train.py: {error}")

    from dida.command import reason
    from dida.data.image_file import ImageFileError
    from dida.run import NonFiniteLoss

    try:
        train(config, *parts)
    except (FileExistsError, ImageFileError, NonFiniteLoss) as error:
        sys.exit(f"train.py: {reason(error)}")


if __name__ == "__main__":
    main(sys.argv[1:])
