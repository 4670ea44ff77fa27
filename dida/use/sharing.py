"""What is written where a network goes to others: its weights, what it takes to use them, and where it is from.

FOLDER/model.safetensors   the weights of one network, under the names of `segmentor.py`
FOLDER/config.json         classes, how to look at pictures, and the run's options without its paths
FOLDER/README.md           the model card
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from dida.config import Config, changed, of_run, to_dict
from dida.data.sources import sources_in
from dida.machine.files import read_json, write_bytes, write_json, write_text
from dida.machine.provenance import source_commit
from dida.models.pretrained import MIT_LICENCE, encoder_licence
from dida.models.weight_file import CONFIG
from dida.state import FOLDER
from dida.use.evaluate import Inference
from dida.use.stored import NETWORKS, SHARED, SHARED_FORMAT, WEIGHTS, WRITTEN_HERE, written_here
from dida.use.trained import Trained

CARD = "README.md"  # as the hub calls it


def save_shared(
    folder: Path, origin: Trained, name: str, network: nn.Module, size: tuple[int, int], inference: Inference
) -> None:
    """Weights and config of one network, for `read_stored`, and its model card. Raises OSError."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # "format" is what transformers, and the hub's own pages, ask of a file
    write_bytes(folder / WEIGHTS[0], safetensors.torch.save(tensors, metadata={"format": "pt", **WRITTEN_HERE}))
    write_text(folder / CARD, _signed(card_of(origin, name)))
    options = changed(without_paths(origin.config), tgt_size=f"{size[0]}x{size[1]}")
    content = {
        "format": SHARED_FORMAT,
        "network": name,
        "step": origin.step,
        "family": origin.family,
        "source": origin.source,
        "inference": {"window": inference.window, "stride": inference.stride, "flip": inference.flip},
        "classes": origin.class_set.to_dict(),
        "options": to_dict(options),
    }
    write_json(folder / CONFIG, {SHARED: content})  # last: without it the folder is not read


def require_nothing_of_others(folder: Path) -> None:
    """Raise ValueError where `save_shared` would write over what it has not written: the config.json of a run or of
    another program, their weights, somebody's README.md, a model card that was edited. Each file says so by itself, as
    a save may have been killed between two of them."""
    if (folder / FOLDER).exists():
        raise ValueError(f"{folder}: is the folder of a run, whose config.json would be lost; choose another one")
    config, weights, card = folder / CONFIG, folder / WEIGHTS[0], folder / CARD
    if config.exists() and not _is_ours(config):
        raise ValueError(f"{config}: is of another program and would be lost; choose another folder")
    if weights.exists() and not written_here(weights):
        raise ValueError(f"{weights}: was not written by this version of dida and would be lost; choose another folder")
    if card.exists() and not _is_signed(card):
        raise ValueError(
            f"{card}: was not written by this version of dida, or edited since, and would be lost; "
            "move it away, or choose another folder"
        )


def _is_ours(config: Path) -> bool:
    try:
        return isinstance(read_json(config)[SHARED], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _signed(card: str) -> str:
    """With a last line, which the hub does not show, by which an edited card is known."""
    return f"{card}<!-- written by dida {hashlib.sha256(card.encode()).hexdigest()} -->\n"


def _is_signed(card: Path) -> bool:
    try:
        text = card.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    return text == _signed("".join(text.splitlines(keepends=True)[:-1]))


def without_paths(config: Config) -> Config:
    """The options of a run without what says where things lie on somebody's machine; of files the names stay."""
    data, model = config.data, config.model
    return changed(
        of_run(config),
        src="+".join(map(_named, sources_in(data.src))),
        tgt=_named(data.tgt),
        data_root=Config().data.data_root,
        weights=model.weights if model.weights in ("auto", "none") else Path(model.weights).name,
        init=None if model.init is None else Path(model.init.name),
        cache=None,
        out=None,
    )


def _named(domain: str) -> str:
    return f"folder:{Path(domain.removeprefix('folder:')).name}" if domain.startswith("folder:") else domain


# ---- the model card ------------------------------------------------------------------------------------------------


def card_of(origin: Trained, network: str) -> str:
    """README.md of the folder: Markdown with the header that the hub reads."""
    parts = (_header(origin), _use(origin, network), _data(origin), _scores(origin), _licence(origin))
    return "\n".join(line for part in parts for line in part) + "\n"


def _header(origin: Trained) -> Iterator[str]:
    yield "---"
    yield "library_name: dida"
    yield "pipeline_tag: image-segmentation"
    yield "license: other"
    yield f"license_name: {'nvidia-segformer' if _terms(origin) == MIT_LICENCE else 'see-below'}"
    yield "tags: [semantic-segmentation, domain-adaptation, dida, pytorch_model_hub_mixin, model_hub_mixin]"
    yield "---"
    yield ""


def _use(origin: Trained, network: str) -> Iterator[str]:
    config = without_paths(origin.config)
    what = origin.family or f"{config.method} ({config.data.src} to {config.data.tgt})"
    yield f"# Semantic segmentation: {what}, {config.model.backbone}"
    yield ""
    yield f"The {network} of `dida`, which labels every pixel with one of {len(origin.class_set)} classes:"
    yield f"{', '.join(origin.class_set.names)}."
    yield ""
    yield "    import dida                             # pip install dida-segmentation"
    yield '    network = dida.load("user/name")        # this repository, or a folder with its files'
    yield '    labels = network("street.png")          # [H, W] uint8, places in network.classes'
    yield ""


def _data(origin: Trained) -> Iterator[str]:
    config = without_paths(origin.config)
    yield "## Data and settings"
    yield ""
    if origin.family:
        yield f"A network that others published ({origin.family}), read from `{origin.path.name}` and written anew."
        yield f"What it was trained on: {origin.source or 'the file does not say'}."
    else:
        commit = source_commit()
        rows = {
            "method": config.method,
            "labelled source": config.data.src,
            "target, without labels": config.data.tgt,
            "step": f"{origin.step} of {config.optim.steps}",
            "encoder": f"{config.model.backbone}, start weights {config.model.init or config.model.weights}",
            "head": f"{config.model.head}, {config.model.embed_dim} channels",
            "pictures are scaled into": config.data.tgt_size,
            "crop and batch": f"{config.data.crop}, {config.data.batch_size} + {config.data.batch_size}",
            "learning rate": config.optim.lr,
            "seed": config.run.seed,
            "written by": f"commit {commit['commit'][:12]}" if commit else "an installed package",
        }
        yield "| | |"
        yield "|---|---|"
        yield from (f"| {name} | {value} |" for name, value in rows.items())
        yield ""
        yield "Every option of the run is in `config.json`."
    yield ""


def _scores(origin: Trained) -> Iterator[str]:
    yield "## Scores"
    yield ""
    reports = scores_beside(origin)
    if not reports:
        yield "None were kept with it. `dida eval RUN --json RUN/val.json` before saving puts them here."
    for report in reports:
        toy = "; the toy benchmark, not to be compared with published numbers" if report["toy"] else ""
        yield f"mIoU in percent on {_named(report['domain'])} {report['split']} ({report['images']} images at "
        yield f"{report['size']}, scored at their own resolution{toy}):"
        yield ""
        networks = [name for name in NETWORKS if name in report]
        yield f"| | {' | '.join(networks)} |"
        yield "|---|" + "---|" * len(networks)
        for n in report[networks[0]]["mIoU"]:
            yield f"| mIoU, {n} classes | " + " | ".join(_cell(report[name]["mIoU"][n]) for name in networks) + " |"
        for name in report[networks[0]]["IoU"]:
            yield f"| {name} | " + " | ".join(_cell(report[who]["IoU"][name]) for who in networks) + " |"
        yield ""
    yield ""


def scores_beside(origin: Trained) -> list[dict[str, Any]]:
    """What `dida eval RUN --json RUN/ANY.json` left in the folder of the run for this step."""
    if origin.path.parent.name != FOLDER:
        return []
    found = []
    for path in sorted(origin.path.parent.parent.glob("*.json")):
        try:
            content = read_json(path)
        except (OSError, ValueError):
            continue
        scored = isinstance(content, dict) and any(name in content for name in NETWORKS)
        if scored and content.get("step") == origin.step:
            found.append(content)
    return found


def _licence(origin: Trained) -> Iterator[str]:
    yield "## Licence"
    yield ""
    yield f"Start weights: {_terms(origin)}."
    yield "The terms of the training data are those of their publishers. The code that trained it has the MIT licence."
    yield ""
    yield "The method is that of *Dual-Level Interaction for Domain Adaptive Semantic Segmentation* by Dongyu Yao and"
    yield "Boheng Li (ICCV Workshops 2023, arXiv:2307.07972)."


def _terms(origin: Trained) -> str:
    """The licence that comes with the start weights; published networks started from NVIDIA's."""
    model = origin.config.model
    if model.init and not origin.family:
        return f"those of the network in {model.init.name}, on whatever terms that has"
    return MIT_LICENCE if origin.family else encoder_licence(model.backbone, model.weights)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
