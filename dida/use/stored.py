"""Networks as they lie on disk or on the hub, whoever wrote them: read, told apart, not built yet."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor

from dida.config import Config, changed, from_dict
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet, distinct_colours, plain
from dida.machine.files import read_json
from dida.models.pretrained import fetch_weights
from dida.models.published import SEGFORMER, Published, read_published
from dida.models.weight_file import CONFIG, SUFFIXES, read_weights
from dida.state import FOLDER, Foreign, latest, load_checkpoint
from dida.use.evaluate import WHOLE_IMAGE, Inference
from dida.use.paper import Printed, printed_of_segformer, printed_of_self_training

NETWORKS = ("student", "teacher")
SHARED = "dida"  # the entry of config.json that a shared folder is known by, and that all of ours is in
SHARED_FORMAT = 1
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder that is laid out as on the hub


@dataclass(frozen=True)
class Stored:
    """One or two networks with all that it takes to build and to ask them."""

    path: Path
    step: int
    config: Config  # of the run; of a published file no more than the network and how to look at pictures
    class_set: ClassSet
    weights: dict[str, dict[str, Tensor]]  # by name, see NETWORKS; one or both
    family: str | None = None  # of a published file, see published.py; None: a run of ours
    source: str | None = None  # of a published file: what it says it was trained on
    inference: Inference = WHOLE_IMAGE  # of the paper that it is of

    @property
    def printed(self) -> tuple[Printed, ...]:
        """What papers print of such a network on Cityscapes val, if it is a published one with those classes."""
        if self.family is None or self.class_set != CITYSCAPES_CLASSES:
            return ()
        backbone = self.config.model.backbone
        return printed_of_segformer(backbone) if self.family == SEGFORMER else printed_of_self_training(self.source)


def read_stored(place: Path | str, **hub: Any) -> Stored:
    """A run folder's newest checkpoint, a checkpoint, a shared folder, a published file, or a repository of the hub.

    A name such as user/network is one of the hub, see `hub_name`. `hub`: what `hf_hub_download` takes,
    such as a revision. Raises FileNotFoundError, or ValueError that names the file, for anything else and for what is
    damaged.
    """
    path = Path(place).expanduser()
    if not path.exists() and (repo := hub_name(place)):
        path = _download(repo, **hub)
    if path.is_dir() and not (path / FOLDER).is_dir():
        if (path / CONFIG).is_file() and isinstance(shared := _json(path / CONFIG).get(SHARED), dict):
            return _read_shared(path, shared)
        if weights := next((path / name for name in WEIGHTS if (path / name).is_file()), None):
            if written_here(weights):
                raise ValueError(f"{path}: there is no {CONFIG} of this network in it; save it again")
            return _of_published(weights, read_published(weights))
    path = latest(path)
    if path.suffix == SUFFIXES[0]:
        if written_here(path):
            raise ValueError(f"{path}: what it needs stands beside it; name its folder, {path.parent}")
        return _of_published(path, read_published(path))
    try:
        return _read_checkpoint(path)
    except Foreign as error:
        if path.suffix not in SUFFIXES:
            raise
        try:
            return _of_published(path, read_published(path))
        except ValueError as reason:
            raise ValueError(f"{error}. As a published network: {reason}") from reason


def _read_checkpoint(path: Path) -> Stored:
    checkpoint = load_checkpoint(path, needs=("step", "config", "classes", *NETWORKS))
    try:
        config, class_set = from_dict(checkpoint["config"]), ClassSet.from_dict(checkpoint["classes"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Stored(path, checkpoint["step"], config, class_set, {name: checkpoint[name] for name in NETWORKS})


# ---- published -----------------------------------------------------------------------------------------------------


def _of_published(path: Path, found: Published) -> Stored:
    """With the protocol of its paper: DAFormer's whole image at 1024x512, or SegFormer's windows at full size."""
    segformer = found.family == SEGFORMER
    config = changed(
        Config(),
        backbone=found.backbone,
        head=found.head,
        embed_dim=found.embed_dim,
        weights="none",
        src=found.source or Config().data.src,
        tgt_size="2048x1024" if segformer else "1024x512",
    )
    return Stored(
        path=path,
        step=0,
        config=config,
        class_set=_class_set(path, found),
        weights=found.weights,
        family=found.family,
        source=found.source,
        inference=Inference(window=1024, stride=768) if segformer else WHOLE_IMAGE,
    )


def _class_set(path: Path, found: Published) -> ClassSet:
    """The classes that the file names; of one that names none, those of Cityscapes, if it has as many."""
    classes = found.classes
    names = found.names or (CITYSCAPES_CLASSES.names if classes == len(CITYSCAPES_CLASSES) else ())
    if len(names) != classes:
        raise ValueError(
            f"{path}: tells {classes} classes apart and names {len(names) or 'none'} of them; a {CONFIG} beside it "
            'with "id2label": {"0": "...", ...} can name them'
        )
    if [plain(name) for name in names] == [plain(name) for name in CITYSCAPES_CLASSES.names]:
        return CITYSCAPES_CLASSES
    colours = found.colours or tuple(colour for colour, _ in zip(distinct_colours(), names, strict=False))
    try:
        return ClassSet(names, colours, things=(), label_ids=tuple(range(classes)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# ---- shared --------------------------------------------------------------------------------------------------------


def _read_shared(folder: Path, shared: dict[str, Any]) -> Stored:
    """What `sharing.py` wrote: one network."""
    if (found := shared.get("format")) != SHARED_FORMAT:
        raise ValueError(f"{folder / CONFIG}: expected format {SHARED_FORMAT}, found {found!r}")
    try:
        window = shared["inference"]
        return Stored(
            path=folder,
            step=int(shared["step"]),
            config=from_dict(shared["options"]),
            class_set=ClassSet.from_dict(shared["classes"]),
            weights={str(shared["network"]): read_weights(folder / WEIGHTS[0]).state},
            family=shared["family"],
            source=shared["source"],
            inference=Inference(window["window"], window["stride"], window["flip"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        why = error if isinstance(error, ValueError) else f"not what was written ({error!r})"
        raise ValueError(f"{folder / CONFIG}: {why}") from error


WRITTEN_HERE = {"written_by": "dida"}  # in the header of weights, so that they are known without their config


def written_here(weights: Path) -> bool:
    """Whether a file is one of `sharing.py`, whose classes and options stand in a config beside it."""
    try:
        with safetensors.safe_open(weights, "pt") as opened:
            return WRITTEN_HERE.items() <= (opened.metadata() or {}).items()
    except (OSError, safetensors.SafetensorError):
        return False


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    return content if isinstance(content, dict) else {}


# ---- the hub -------------------------------------------------------------------------------------------------------


def hub_name(place: Path | str) -> str | None:
    """user/network, where this cannot be meant as a path: the folder `user` is not here either.

    As text it may begin as a path (./user/network), which a Path forgets.
    """
    name = str(place)
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).parent.exists() else None


def _download(repo: str, **at: Any) -> Path:
    """The folder in the hub's cache that holds config and weights of a repository."""
    unreachable: LocalEntryNotFoundError | None = None
    try:
        try:
            hf_hub_download(repo, CONFIG, **at)
        except LocalEntryNotFoundError as error:  # after half a minute of trying, which the weights need not repeat
            unreachable, at = error, at | {"local_files_only": True}
        except EntryNotFoundError:
            pass  # weights alone will do, if their layout is known
        return fetch_weights(repo, **at).parent
    except (OSError, EntryNotFoundError, ValueError) as error:
        error = unreachable or error
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{repo}: no such run folder, checkpoint or file here; "
            f"read as a repository of the hub: {repo}, and nothing was found there ({why})"
        ) from error
