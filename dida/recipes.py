"""Named sets of options: one function per method of the paper's tables, and the toy's schedule.

A recipe takes a config and returns a changed one; rows of an ablation table are `changed(dida(config), option=value)`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dida.config import MAY_CHANGE, Config, changed, differing, from_dict, of_run
from dida.machine.files import read_json
from dida.options import given, read_command_line

UNLABELLED_TOYS = ("toy-cityscapes", "toy-night", "toy-fog")  # their train labels are apart, in NAME-oracle


def source(config: Config) -> Config:
    """Supervised on the source alone, uniformly sampled, with distorted colours as the family's: the lower bound."""
    return changed(
        daformer(config),
        method="source",
        self_training=False,
        teacher_norm="averaged",
        rare_class_sampling=False,
        feature_weight=0.0,
        source_colour="distort",
    )


def oracle(config: Config) -> Config:
    """Supervised on the target's own labels: the upper bound, for comparison only."""
    target = config.data.tgt
    labelled = f"{target}-oracle" if target in UNLABELLED_TOYS else target
    return changed(source(config), method="oracle", src=labelled, src_size=config.data.tgt_size)


def dacs(config: Config) -> Config:
    """DACS: the teacher labels the target, ClassMix pastes source classes onto it; a faster teacher, and every row."""
    return changed(
        daformer(config),
        method="dacs",
        rare_class_sampling=False,
        feature_weight=0.0,
        teacher_momentum=0.99,
        ignore_top=0,
        ignore_bottom=0,
    )


def daformer(config: Config) -> Config:
    """DAFormer's strategy: DACS with rare class sampling and the ImageNet feature distance."""
    return changed(config, method="daformer", instance_loss="off", selecting="off", regenerate_semantic="none")


def dida(config: Config) -> Config:
    """The paper: DAFormer with the instance bank, instance-level discrimination and regeneration."""
    return changed(config, method="dida")


def paper(config: Config) -> Config:
    """The instance level as printed: no class prior, lambda_ins, rules and phi of the paper."""
    return changed(
        config,
        recipe="paper",
        instance_weight=1.0,
        instance_weights="all",
        instance_prior="none",
        regenerate_semantic="smooth",
        regenerate_instance="scale",
        phi=0.9,
    )


def advised(config: Config) -> Config:
    """The instance level as experiments advise it: a weaker loss, half-way between pixels and classes in weights and
    class prior; docs/instance_loss_on_the_toy.md says why."""
    return changed(
        paper(config), recipe="advised", instance_weight=0.3, instance_weights="root", instance_prior="student"
    )


RECIPES: dict[str, Callable[[Config], Config]] = {"paper": paper, "advised": advised}
METHODS: dict[str, Callable[[Config], Config]] = {
    "source": source,
    "dacs": dacs,
    "daformer": daformer,
    "dida": dida,
    "oracle": oracle,
}


def toy(config: Config) -> Config:
    """The embedded benchmark: 128x256 pictures, no pretrained weights, minutes on a laptop.

    The schedule is 40 times shorter than the paper's, so every number that is counted in steps or pixels shrinks with
    it: averages forget faster, the bank is filled and refreshed earlier, classes count as rare with fewer pixels.
    The instance level is the advised one.
    """
    return changed(
        advised(config),
        src="toy-gta5",
        tgt="toy-cityscapes",
        src_size="256x128",
        tgt_size="256x128",
        crop=128,
        batch_size=4,
        workers=1,
        rare_class_temperature=0.05,
        rare_class_pixels=20,
        backbone="mit_b0",
        weights="none",
        embed_dim=64,
        drop_path=0.05,
        steps=1000,
        lr=3e-3,
        head_lr_factor=1.0,
        warmup=60,
        teacher_momentum=0.99,
        ignore_top=0,
        ignore_bottom=64,
        feature_weight=0.0,
        bank_size=190,
        bank_momentum=0.9,
        bank_every=10,
        bank_start=300,
        bank_fill=100,
        log_every=20,
        panel_every=200,
        save_every=200,
    )


def synthia(config: Config) -> Config:
    """SYNTHIA's pictures are used at their own size."""
    return changed(config, src="synthia", src_size="1280x760")


WITH_HOOD = ("cityscapes", "foggy-cityscapes")  # targets whose pictures show the hood of the camera's own car


def of_data(config: Config, src: str, tgt: str) -> Config:
    """What follows from the data: own pictures keep their size, and rare is a share of them; the rows that are left
    out at the top and bottom of a target crop, with the hood of the car, are those of Cityscapes."""
    if src.startswith("toy") or tgt.startswith("toy"):
        return toy(config)
    if src == "synthia":
        config = synthia(config)
    if "folder:" in src:
        config = changed(config, rare_class_share=0.0015)  # 3000 of GTA5's 1914 x 1052 pixels
    if "folder:" in src + tgt:
        config = changed(config, enlarge=False)
    if tgt not in WITH_HOOD:
        config = changed(config, ignore_top=0, ignore_bottom=0)
    return config


def of_steps(config: Config, steps: int) -> Config:
    """Another number of steps: warm-up, start and filling of the bank take the same share of the run. (The decay of
    the learning rate always ends with the run.)"""
    share = steps / config.optim.steps
    start = max(round(config.instance.bank_start * share), 1)
    return changed(
        config,
        steps=steps,
        warmup=round(config.optim.warmup * share),
        bank_start=start,
        bank_fill=min(max(round(config.instance.bank_fill * share), 1), start),
    )


def from_command_line(args: list[str], program: str = "train.py") -> Config:
    """The config of a command line: that of the run to resume, a saved one, or the method's and domain's recipe; then
    what is given.

    Exits with a message for an unknown option, a choice that does not exist, a value that no run could mean, or one
    that cannot change on --resume.
    """
    if resume := given(args, "resume", ""):
        if saved := given(args, "config", ""):
            sys.exit(f"{program}: --resume {resume} has options of its own; leave --config {saved} out")
        return _resumed(Path(resume), args, program)
    if saved := given(args, "config", ""):
        return read_command_line(Config, args, program, _as_saved(Path(saved), args, program))
    base = Config()
    base = of_data(base, given(args, "src", base.data.src), given(args, "tgt", base.data.tgt))
    base = changed(base, tgt=given(args, "tgt", base.data.tgt), tgt_size=given(args, "tgt-size", base.data.tgt_size))
    base = _following(base, args)
    recipe = RECIPES.get(given(args, "recipe", base.recipe), paper)
    method = METHODS.get(given(args, "method", base.method), dida)
    return read_command_line(Config, args, program, method(recipe(base)))


def _following(config: Config, args: list[str]) -> Config:
    """What follows from options that are given: schedules from steps, and that pixels count where they are said."""
    if given(args, "rare-class-pixels", ""):
        config = changed(config, rare_class_share=0.0)
    given_steps = given(args, "steps", "")
    try:
        steps = int(given_steps) if len(given_steps) < 16 else 0  # a long number is slow to read at all
    except ValueError:
        steps = 0
    return of_steps(config, steps) if 0 < steps < 10**10 else config  # else the parser says what is wrong


def _as_saved(path: Path, args: list[str], program: str) -> Config:
    """The options of another run for a new one, which gets a folder of its own."""
    try:
        saved = changed(of_run(_saved_config(path, "--config")), out=None)
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    for name in ("method", "recipe"):
        if (word := given(args, name, had := getattr(saved, name))) != had:
            sys.exit(
                f"{program}: --{name} {word} is a set of options, and {path} holds all options, those of {had}; "
                "leave one of the two out"
            )
    return _following(saved, args)


def _resumed(path: Path, args: list[str], program: str) -> Config:
    try:
        saved = _saved_config(path, "--resume")
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    config = read_command_line(Config, args, program, saved)
    if other := differing(saved, config):
        sys.exit(
            f"{program}: --resume continues a run as it was configured; {', '.join(other)} cannot change "
            f"(only {', '.join(sorted(MAY_CHANGE))} can, and steps may grow)"
        )
    return config


def _saved_config(path: Path, option: str) -> Config:
    """The options of a run folder, from its config.json, or of a checkpoint, from its own copy of them.

    Raises OSError, or ValueError that names the file.
    """
    if path.is_file() and path.suffix == ".json":
        file, values = path, _options_in(path)
    elif path.is_file():
        from dida.state import load_checkpoint  # imports PyTorch, which only this needs

        file, values = path, load_checkpoint(path, needs=("config",))["config"]
    elif (path / "config.json").exists():
        file = path / "config.json"
        values = _options_in(file)
    else:
        raise FileNotFoundError(f"{option} {path}: no run folder, there is no config.json in it")
    try:
        saved = from_dict(values)
        saved.check()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return saved


def _options_in(file: Path) -> Any:
    try:
        return read_json(file)
    except ValueError as error:
        instead = f"every checkpoint has a copy, --resume {file.parent}/checkpoints/FILE takes it"
        raise ValueError(f"{error}; {instead}") from error
