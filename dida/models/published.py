"""Segmentation networks as others publish them, under the names that weights have here (see `segmentor.py`).

    DAFormer, DIDA   mmcv's {meta, state_dict, optimizer}: `model.*` is the student, `ema_model.*` the teacher,
                     `imnet_model.*` the encoder as ImageNet left it, which `pretrained.py` reads
    SegFormer        NVIDIA's: the same wrapper, `backbone.*` and `decode_head.linear_*`
                     Hugging Face's: `segformer.encoder.*` and `decode_head.linear_c.*`, with a config.json beside it

DIDA adds no weights to DAFormer, so their files cannot be told apart. HRDA and MIC are refused by name.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dida.models.mit import VARIANTS
from dida.models.pretrained import mit_layout
from dida.models.weight_file import State, read_weights

SELF_TRAINED, SEGFORMER = "DAFormer or DIDA", "SegFormer"  # families
SOURCES = {"GTADataset": "gta5", "SynthiaDataset": "synthia"}  # as configs of the DAFormer family call them


class Published(NamedTuple):
    """What a file holds, and what it says of itself."""

    family: str  # SELF_TRAINED or SEGFORMER
    backbone: str
    head: str  # a word of --head
    embed_dim: int
    classes: int
    weights: dict[str, State]  # student, and teacher where there is one
    names: tuple[str, ...]  # of the classes; empty: the file does not say
    colours: tuple[tuple[int, int, int], ...]  # RGB of the classes; empty: it does not say
    source: str | None  # what it was trained on, where it says so


def read_published(path: Path) -> Published:
    """The networks of a file of one of the layouts above.

    Raises FileNotFoundError; ValueError that names the file and says why it cannot be used.
    """
    file = read_weights(path)
    networks = _networks(file.state, path)
    _require_one_scale(file.state, path)
    head, family = _head(networks["student"], path)
    try:
        weights = {name: _with_our_encoder(state) for name, state in networks.items()}
        if head == "segformer":
            weights = {name: _segformer_layout(state) for name, state in weights.items()}
        student = weights["student"]
        embed_dim = student["decode_head.embed_layers.0.proj.weight"].shape[0]
        backbone = _variant(student, path)
        classes = student["decode_head.conv_seg.bias"].shape[0]
    except KeyError as error:
        raise ValueError(f"{path} is not a whole network of {family}: it lacks {error.args[0]}") from error
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"{path} is no network of {family}: a tensor is of another shape ({error})") from error
    names, colours = _classes(file.about)
    return Published(family, backbone, head, embed_dim, classes, weights, names, colours, _source(file.about))


def _networks(state: State, path: Path) -> dict[str, State]:
    """Student and teacher of a file of self-training; a file with one network has that as its student."""
    parts = {"student": "model.", "teacher": "ema_model."}
    found = {
        name: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for name, prefix in parts.items()
    }
    found = {name: part for name, part in found.items() if part} or {"student": state}
    if "student" not in found:
        raise ValueError(f"{path} holds the teacher of a self-training (ema_model.*) and not its student (model.*)")
    return found


def _require_one_scale(state: State, path: Path) -> None:
    if any(".scale_attention." in name or ".decode_head.head." in f".{name}" for name in state):
        raise ValueError(
            f"{path} holds a network of HRDA or MIC: two crops of different scale, fused by an attention between "
            "scales. There is no such head here, and without it these weights mean nothing; files of DAFormer, DIDA "
            "and SegFormer can be read"
        )


def _head(state: State, path: Path) -> tuple[str, str]:
    """The word of --head and the family, by the names in the decode head."""
    if any(name.startswith("decode_head.fuse_layer.aspp_modules.") for name in state):
        return "daformer", SELF_TRAINED
    if any(name.startswith("decode_head.fuse_layer.conv.") for name in state):  # ours, as `dida export` writes it
        return "segformer", SEGFORMER
    if any(re.match(r"decode_head\.linear_c\.?\d\.proj\.", name) for name in state):
        return "segformer", SEGFORMER
    heads = {name.split(".")[1] for name in state if name.startswith("decode_head.")}
    what = f"a decode head of {', '.join(sorted(heads)[:5])}" if heads else "no decode head"
    raise ValueError(
        f"{path} holds {what}: not a network of DAFormer, DIDA or SegFormer"
        + ("" if heads else "; --weights takes a file of an encoder alone")
    )


def _with_our_encoder(state: State) -> State:
    head = {name: value for name, value in state.items() if name.startswith("decode_head.")}
    encoder = mit_layout({name: value for name, value in state.items() if name not in head})
    return {f"backbone.{name}": value for name, value in encoder.items()} | head


_RENAMED = (  # of SegFormer's head: NVIDIA counts from 1, Hugging Face from 0
    (re.compile(r"linear_c\.(\d)\."), lambda m: f"embed_layers.{m[1]}."),
    (re.compile(r"linear_c(\d)\."), lambda m: f"embed_layers.{int(m[1]) - 1}."),
    (re.compile(r"linear_fuse\.(conv\.)?weight"), lambda m: "fuse_layer.conv.weight"),
    (re.compile(r"(linear_fuse\.bn|batch_norm)\."), lambda m: "fuse_layer.bn."),
    (re.compile(r"(linear_pred|classifier)\."), lambda m: "conv_seg."),
)


def _segformer_layout(state: State) -> State:
    if any(name.startswith("decode_head.fuse_layer.") for name in state):
        return state
    layout = {}
    for name, value in state.items():
        if name.startswith("decode_head.conv_seg."):  # mmseg's heads all have one, and SegFormer's does not use it
            continue
        for pattern, ours in _RENAMED:
            if name.startswith("decode_head."):
                name = pattern.sub(ours, name)
        layout[name] = value
    fuse = "decode_head.fuse_layer.conv.weight"
    if fuse in layout:
        layout[fuse] = _finest_first(layout[fuse])
    return layout


def _finest_first(weight: torch.Tensor) -> torch.Tensor:
    """[D, 4 D, 1, 1] for stages concatenated from the coarsest on -> the same for ours, from the finest on."""
    return weight.unflatten(1, (4, -1)).flip(1).flatten(1, 2)


def _variant(state: State, path: Path) -> str:
    dims = tuple(
        value.shape[0] for s in (1, 2, 3, 4) if (value := state.get(f"backbone.patch_embed{s}.proj.weight")) is not None
    )
    blocks = [re.match(r"backbone\.block(\d)\.(\d+)\.", name) for name in state]
    depths = tuple(max((int(m[2]) + 1 for m in blocks if m and int(m[1]) == s), default=0) for s in (1, 2, 3, 4))
    for name, (channels, lengths) in VARIANTS.items():
        if (channels, lengths) == (dims, depths):
            return name
    raise ValueError(
        f"{path}: its encoder is none of mit_b0 to mit_b5"
        + (f" (channels {dims}, blocks {depths})" if dims else "; networks with another one cannot be read")
    )


def _classes(about: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours of the classes, as mmcv's meta or the hub's config.json has them."""
    names, colours = about.get("CLASSES"), about.get("PALETTE")
    if isinstance(labels := about.get("id2label"), dict):
        try:
            names = [labels[key] for key in sorted(labels, key=int)]
        except (ValueError, TypeError):
            names = None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return (), ()
    if not isinstance(colours, list | tuple) or len(colours) != len(names):
        return tuple(names), ()
    try:
        return tuple(names), tuple((int(r), int(g), int(b)) for r, g, b in colours)
    except (TypeError, ValueError):
        return tuple(names), ()


def _source(about: dict[str, Any]) -> str | None:
    """The source in the text of the config that mmcv keeps, if it is one of those of the paper."""
    text = about.get("config")
    found = [ours for theirs, ours in SOURCES.items() if isinstance(text, str) and theirs in text]
    return found[0] if len(found) == 1 else None
