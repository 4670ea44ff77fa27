"""Files in the layouts in which others publish their networks, with random weights. Written from what is known of the
layouts (names and shapes), not with their code."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from dida.data.classes import CITYSCAPES_CLASSES
from dida.models.segformer import SegFormerHead
from dida.models.segmentor import Segmentor

State = dict[str, Tensor]
SIZE = 16  # channels of the head


def network(seed: int, *, segformer: bool = False, classes: int = 19) -> Segmentor:
    """A small one in which no number is at its first value, in evaluation mode."""
    torch.manual_seed(seed)
    made = Segmentor("mit_b0", classes, SIZE, 0.0, *([SegFormerHead] if segformer else []))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.normal_(made.decode_head.conv_seg.weight)
    nn.init.normal_(made.decode_head.conv_seg.bias)
    return made.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


class ConfigDict(dict):
    """As mmcv's: a dictionary of a class that a reader need not have."""


def mmcv(path: Path, state: State, *, config: str = "", **meta: Any) -> Path:
    """The wrapper, with what mmcv puts into it: objects of its own and numbers of numpy among them."""
    beside = {"epoch": 1, "iter": 40_000, "config": config, "hook_msgs": ConfigDict(best_score=np.float64(0.5)),
              "CLASSES": CITYSCAPES_CLASSES.names, "PALETTE": [list(c) for c in CITYSCAPES_CLASSES.colours],
              "scores": np.arange(3.0), "at": Path("/")}  # fmt: skip
    torch.save({"meta": beside | meta, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def daformer_file(path: Path, student: Segmentor, teacher: Segmentor, imagenet: Segmentor, **meta: Any) -> Path:
    """As DAFormer and DIDA save theirs."""
    state = {}
    for prefix, part in (("model.", student), ("ema_model.", teacher), ("imnet_model.", imagenet)):
        state |= prefixed(prefix, part.state_dict())
    return mmcv(path, state, **meta)


def nvidia_names(state: State) -> State:
    """SegFormer's own names, with the classifier that mmseg gives every head and SegFormer's does not use."""
    renamed = {"decode_head.conv_seg.weight": torch.ones(19, 128, 1, 1), "decode_head.conv_seg.bias": torch.ones(19)}
    for name, value in state.items():
        if m := re.fullmatch(r"decode_head\.embed_layers\.(\d)\.(.+)", name):
            name = f"decode_head.linear_c{int(m[1]) + 1}.{m[2]}"
        elif name == "decode_head.fuse_layer.conv.weight":
            name, value = "decode_head.linear_fuse.conv.weight", coarsest_first(value)
        elif name.startswith("decode_head.fuse_layer.bn."):
            name = name.replace("fuse_layer", "linear_fuse")
        elif name.startswith("decode_head.conv_seg."):
            name = name.replace("conv_seg", "linear_pred")
        renamed[name] = value
    return renamed


def coarsest_first(weight: Tensor) -> Tensor:
    """[D, 4 D, 1, 1]: SegFormer concatenates its stages from the last to the first."""
    return torch.cat(weight.chunk(4, dim=1)[::-1], dim=1)


def as_transformers(state: State) -> State:
    """The same weights under the names that the hub's files have, written out name by name."""
    renamed = {}
    for name, v in state.items():
        if name.startswith("head."):
            renamed[name.replace("head", "classifier")] = v
        elif m := re.fullmatch(r"patch_embed(\d)\.(proj|norm)\.(\w+)", name):
            part = {"proj": "proj", "norm": "layer_norm"}[m[2]]
            renamed[f"segformer.encoder.patch_embeddings.{int(m[1]) - 1}.{part}.{m[3]}"] = v
        elif m := re.fullmatch(r"norm(\d)\.(\w+)", name):
            renamed[f"segformer.encoder.layer_norm.{int(m[1]) - 1}.{m[2]}"] = v
        elif m := re.fullmatch(r"block(\d)\.(\d+)\.(.+)\.(weight|bias)", name):
            block = f"segformer.encoder.block.{int(m[1]) - 1}.{m[2]}"
            if m[3] == "attn.kv":
                key, value = v.chunk(2)
                renamed[f"{block}.attention.self.key.{m[4]}"] = key
                renamed[f"{block}.attention.self.value.{m[4]}"] = value
            else:
                part = {
                    "norm1": "layer_norm_1",
                    "norm2": "layer_norm_2",
                    "attn.q": "attention.self.query",
                    "attn.sr": "attention.self.sr",
                    "attn.norm": "attention.self.layer_norm",
                    "attn.proj": "attention.output.dense",
                    "mlp.fc1": "mlp.dense1",
                    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
                    "mlp.fc2": "mlp.dense2",
                }[m[3]]
                renamed[f"{block}.{part}.{m[4]}"] = v
    assert len(renamed) == len(state) + 2 * 8  # eight blocks, each with a kv of two tensors, split in two
    return renamed


def transformers_folder(folder: Path, state: State, names: tuple[str, ...]) -> Path:
    """A repository of the hub as transformers writes it: SegformerForSemanticSegmentation."""
    encoder = {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}
    renamed = as_transformers(encoder)
    for name, value in nvidia_names(state).items():
        if m := re.fullmatch(r"decode_head\.linear_c(\d)\.(.+)", name):
            renamed[f"decode_head.linear_c.{int(m[1]) - 1}.{m[2]}"] = value
    head = {n.removeprefix("decode_head."): v for n, v in state.items() if n.startswith("decode_head.")}
    renamed["decode_head.linear_fuse.weight"] = coarsest_first(head["fuse_layer.conv.weight"])
    renamed |= {n.replace("fuse_layer.bn", "decode_head.batch_norm"): v for n, v in head.items() if ".bn." in n}
    renamed |= {f"decode_head.classifier.{part}": head[f"conv_seg.{part}"] for part in ("weight", "bias")}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "segformer", "id2label": {str(i): name for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: value.contiguous().clone() for name, value in renamed.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder
