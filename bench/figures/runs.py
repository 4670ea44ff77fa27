"""What all figures share: runs and what they say of images, and the file that says where a picture comes from."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import record
from dida.data import domains
from dida.data.domains import LabelledDomain
from dida.data.labelled_images import LabelledImage, LabelledImages
from dida.data.transforms import Normalise
from dida.machine.device import find_device
from dida.method.bank import InstanceBank
from dida.options import parse_size
from dida.state import load_checkpoint
from dida.use.evaluate import WHOLE_IMAGE, evaluating, predict
from dida.use.trained import Trained, load_trained


def load_runs(paths: Sequence[Path], device: str) -> list[Trained]:
    """Networks of the newest checkpoint of every run. Raises FileNotFoundError, or ValueError if there is no run."""
    if not paths:
        raise ValueError("no run was named: give one or more run folders")
    return [load_trained(path, find_device(device)) for path in paths]


def names_of(runs: Sequence[Trained], given: Sequence[str]) -> Sequence[str]:
    """What the runs are called in a picture, by default their methods. Raises ValueError unless each has its own."""
    names = given or [trained.config.method for trained in runs]
    if len(names) != len(runs):
        raise ValueError(f"--names: {len(names)} for {len(runs)} runs")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"several runs would be called {', '.join(twice)}: give each a name of its own with --names")
    return names


def load_bank(trained: Trained) -> InstanceBank:
    """The bank in a run's checkpoint, on the device of its networks.

    Raises ValueError if the run has none: its method keeps none, or the checkpoint is older than the bank.
    """
    config = trained.config
    if config.instance.selecting == "off":
        raise ValueError(f"{trained.path}: --method {config.method} keeps no bank; take a run of --method dida")
    state = load_checkpoint(trained.path)["bank"]
    if not state["written"].any():
        first = config.instance.bank_start - config.instance.bank_fill
        raise ValueError(
            f"{trained.path}: the bank is still empty; it is filled from step {first} on, this is step {trained.step}"
        )
    bank = InstanceBank(state["labels"], state["features"].shape[1], len(state["written"]))
    bank.load_state_dict(state)
    return bank.to(device_of(trained))


def device_of(trained: Trained) -> torch.device:
    return next(trained.networks["student"].parameters()).device


def domain_of(trained: Trained, name: str | None, root: Path | None, split: str) -> LabelledDomain:
    """The images of a domain, by default the run's target, with labels of the run's classes. Raises as
    `domains.labelled`, and ValueError where the two have no class in common."""
    data = trained.config.data
    return domains.labelled(name or data.tgt, root or data.data_root, split).seen_as(trained.class_set)


def evenly_spaced(domain: LabelledDomain, count: int) -> list[int]:
    """Indices of `count` images, evenly spaced, so that none is chosen by eye. Raises ValueError for a wrong count."""
    if not 1 <= count <= len(domain.images):
        raise ValueError(f"--images {count}: {domain.name} {domain.split} has 1 to {len(domain.images)}")
    return [round(i) for i in np.linspace(0, len(domain.images) - 1, count)]


def images_of(trained: Trained, domain: LabelledDomain) -> LabelledImages:
    """The domain as the run's networks see it."""
    data = trained.config.data
    return LabelledImages(domain, parse_size(data.tgt_size, option="--tgt-size"), enlarge=data.enlarge)


def predictions(trained: Trained, network: str, images: Iterable[LabelledImage]) -> Iterator[np.ndarray]:
    """Train ids [H, W] uint8 of every image, at the size of its label."""
    device = device_of(trained)
    normalise = Normalise().to(device)
    for image in images:
        with evaluating(trained.networks[network]):
            seen = normalise(image.image.to(device))[None]
            train_ids = predict(trained.networks[network], seen, tuple(image.label.shape), WHOLE_IMAGE)
        yield train_ids[0].cpu().numpy()


def save_facts(picture: Path, runs: Sequence[Trained], facts: Mapping[str, Any]) -> None:
    """Write beside a picture what it was drawn from: commit and machine of the drawing, every run, and the numbers."""
    content = {
        "drawn": record.header(device_of(runs[0]).type),
        "runs": [facts_of(trained) for trained in runs],
        **facts,
    }
    record.write(picture.with_suffix(".json"), content)


def facts_of(trained: Trained) -> dict[str, Any]:
    """Which checkpoint a run is, and from which commit it was trained."""
    folder, config = trained.path.parent.parent, trained.config
    environments = [json.loads(path.read_text()) for path in sorted(folder.glob("environment*.json"))]
    return {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "method": config.method,
        "src": config.data.src,
        "tgt": config.data.tgt,
        "backbone": config.model.backbone,
        "seed": config.run.seed,
        **record.origin(environments),
    }
