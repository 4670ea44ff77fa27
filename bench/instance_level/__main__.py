"""What the instance level knows that the class level does not, and how hard L_ins pulls.

python -m bench.instance_level RUN [RUN ...]      writes bench/results/toy/instance_level.json and .md

Runs of any method can be asked, at any step: the student of the newest checkpoint acts as student and as teacher, and
a bank is filled anew from the source as it would be just before the loss starts. The labels of the target's val split
are only looked at; nothing is trained.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import train
from bench import record
from bench.figures.runs import device_of, domain_of, facts_of, images_of, load_runs, spread
from bench.instance_level.measures import GROUPS, bank_state, class_level, gradient, look
from dida.config import Config, changed, flat
from dida.data.classes import CLASSES
from dida.data.pairs import batches
from dida.method.teacher import as_teacher
from eval import Trained, cell

SPLIT = "val"
# What the recipes of methods without a bank turn off; DIDA, started from such a run, would have it.
OFF_WITHOUT_BANK = ("self_training", "rare_class_sampling", "instance_loss", "selecting", "regenerate_semantic")


@dataclass(frozen=True)
class Options:
    """Measure what the instance level knows of target val images that the class level does not, and how L_ins pulls."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or checkpoints, of any method; the target needs a labelled val split."""
    images: int = 24
    """Target val images, evenly spaced over the split."""
    steps: int = 60
    """Source batches that fill the bank."""
    batches: int = 5
    """Training batches over which gradients are compared."""
    temperatures: tuple[float, ...] = (0.05, 0.1, 0.2)
    """t of the softmax over the bank; gradients are those of the run's own t."""
    phis: tuple[float, ...] = (0.9, 0.7, 0.5)
    """Shares of the class level in z-hat."""
    out: Path = record.RESULTS / "toy" / "instance_level"
    """Where to write, less the endings .json and .md."""
    data_root: Path | None = None
    """Folder that holds the data sets; by default that of each run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def check(self) -> None:
        """Raises ValueError for values that mean nothing."""
        for name in ("steps", "batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least 1")
        if not all(t > 0 for t in self.temperatures):
            raise ValueError(f"--temperatures {self.temperatures}: expected numbers above 0")
        if not all(0 <= phi <= 1 for phi in self.phis):
            raise ValueError(f"--phis {self.phis}: expected numbers in [0, 1]")


def measure(trained: Trained, options: Options) -> dict[str, Any]:
    """All that is said of one run."""
    config = as_dida(trained, options)
    state, method, pairs, device = train.assemble(config)
    network = as_teacher(state.student, "batch").requires_grad_(True)  # L_ins is taken where the student answers
    state = replace(state, student=network, teacher=network)
    stream = batches(
        pairs,
        batch_size=config.data.batch_size,
        start=0,
        stop=options.steps + options.batches,
        workers=config.data.workers,
        device=device,
    )
    training = (batch for batch, _ in stream)
    for state.step, batch in enumerate(islice(training, options.steps)):
        with torch.no_grad():
            embed_BDhw = network(batch.source.image).embed
        method.update_bank(state.bank, embed_BDhw, batch.source.label, state.step, state.step_rng())
    domain = domain_of(trained, None, options.data_root, SPLIT)
    found = images_of(trained, domain)
    chosen = [found[i] for i in spread(domain, options.images)]
    views = list(look(network, chosen, config.data.batch_size))
    return {
        **facts_of(trained),
        "bank": bank_state(state.bank),
        "classes": class_level(
            views,
            state.bank,
            temperatures=options.temperatures,
            phis=options.phis,
            mean_of=16 if config.data.src == "synthia" else CLASSES,
        ),
        "gradient": gradient(config, replace(state, step=options.steps), list(training)),
    }


def as_dida(trained: Trained, options: Options) -> Config:
    """The run's config with the instance level on, lambda_ins = 1 and the bank starting after `options.steps`."""
    config, paper = trained.config, flat(Config())
    if config.bank.selecting == "off":
        config = changed(config, **{name: paper[name] for name in OFF_WITHOUT_BANK})
    if config.bank.instance_loss == "off":
        config = changed(config, instance_loss=paper["instance_loss"])
    return changed(
        config,
        resume=None,
        weights="none",  # all of them come from the checkpoint
        init=trained.path,
        device=options.device,
        data_root=options.data_root or config.data.data_root,
        teacher_norm="batch",
        bank_init="source",
        bank_start=options.steps,
        bank_fill=options.steps,
        instance_weight=1.0,
    )


def render(result: dict[str, Any]) -> str:
    """The markdown page: a section per run."""
    asked = result["options"]
    parts = [
        "# What the instance level knows, and how hard L_ins pulls",
        "In percent, but for cosines and ratios. The student of each checkpoint, as student and as teacher; a bank "
        f"filled anew from {asked['steps']} source batches; labels of the target's {SPLIT} split are only looked at.",
        record.render_header(result["header"]),
    ]
    for run in result["runs"]:
        parts += [f"## {run['method']}, seed {run['seed']}, step {run['step']}", *render_run(run, asked["phis"])]
    return "\n\n".join(parts) + "\n"


def render_run(run: dict[str, Any], phis: Sequence[float]) -> list[str]:
    bank, classes, pulls = run["bank"], run["classes"], run["gradient"]
    hats = [*(f"phi {phi:g}" for phi in phis), "product"]
    columns = list(classes["z"])
    by_kind: dict[tuple[float, float], dict[str, dict[str, Any]]] = {}
    for row in classes["beliefs"]:
        by_kind.setdefault((row["temperature"], row["power"]), {})[row["belief"]] = row
    says = [["z", *map(cell, classes["z"].values()), *[""] * len(hats)]]
    for (t, power), of in by_kind.items():
        name = f"q_ga, t = {t:g}" + (f", frequency^{power:g}" if power else "")
        says.append([name, *(cell(of["q_ga"][x]) for x in columns), *(cell(of[hat]["mIoU"]) for hat in hats)])
    drawn = [
        [choice, cell(p["ratio"]), cell(p["cosine"])]
        + [f"{cell(share['pixels'])} / {cell(share['gradient'])}" for share in p["groups"].values()]
        for choice, p in pulls.items()
    ]
    return [
        f"The bank when the loss starts (slots that hold a vector of their own):\n\n{_one_row(bank)}",
        f"What is said of {classes['images']} images of {run['tgt']} {SPLIT}, and the mIoU of the z-hat made of it:",
        record.table(["", *(name.replace("_", " ") for name in columns), *(f"z-hat, {hat}" for hat in hats)], says),
        "Gradient of L_ins (lambda = 1) against that of L_tgt at the student's embedding; for groups of classes, by "
        "pseudo-label, the share of pixels that L_ins counts / the share of its gradient:",
        record.table(["pixels of L_ins", "ratio of norms", "cosine", *GROUPS], drawn),
    ]


def _one_row(values: dict[str, float | None]) -> str:
    return record.table([name.replace("_", " ") for name in values], [[cell(value) for value in values.values()]])


def main(options: Options) -> None:
    """Measure, write and print. Raises FileNotFoundError or ValueError for runs, data or options that do not fit."""
    options.check()
    runs = load_runs(options.runs, options.device)
    for trained in runs:  # before the first of them takes its minutes
        spread(domain_of(trained, None, options.data_root, SPLIT), options.images)
    result = {
        "header": record.header(device_of(runs[0]).type),
        "options": {"images": options.images, "steps": options.steps, "batches": options.batches, "phis": options.phis},
        "runs": [measure(trained, options) for trained in runs],
    }
    page = render(result)
    record.write(options.out.with_name(f"{options.out.name}.json"), result)
    record.write(options.out.with_name(f"{options.out.name}.md"), page)
    print(page)


def cli(args: list[str]) -> None:
    """`main` of a command line. What a user can put right ends in one message and exit code 1."""
    options = tyro.cli(Options, prog="bench.instance_level", args=args)
    try:
        main(options)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"bench.instance_level: {error}")


if __name__ == "__main__":
    cli(sys.argv[1:])
