"""Files in the layouts in which others publish their networks, with random weights. Written from what is known of the
layouts (names and shapes), not with their code."""

import json
import re
from collections.abc import Iterator
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


def _placed(encoder: State) -> Iterator[tuple[str, int, str, str, Tensor]]:
    """Of every tensor in a stage: patch_embed, block or norm; the stage, from 0; what of it; weight or bias; itself."""
    for name, value in encoder.items():
        if m := re.fullmatch(r"(patch_embed|block|norm)(\d)\.(?:(.+)\.)?(weight|bias)", name):
            yield m[1], int(m[2]) - 1, m[3], m[4], value


def as_transformers(state: State) -> State:
    """The weights of an encoder under the names that the hub's files have, written out name by name."""
    renamed = {name.replace("head", "classifier"): v for name, v in state.items() if name.startswith("head.")}
    for kind, stage, part, end, v in _placed(state):
        if kind == "norm":
            renamed[f"segformer.encoder.layer_norm.{stage}.{end}"] = v
        elif kind == "patch_embed":
            layer = {"proj": "proj", "norm": "layer_norm"}[part]
            renamed[f"segformer.encoder.patch_embeddings.{stage}.{layer}.{end}"] = v
        else:
            number, _, layer = part.partition(".")
            block = f"segformer.encoder.block.{stage}.{number}"
            if layer == "attn.kv":
                key, value = v.chunk(2)
                renamed[f"{block}.attention.self.key.{end}"] = key
                renamed[f"{block}.attention.self.value.{end}"] = value
            else:
                theirs = {
                    "norm1": "layer_norm_1",
                    "norm2": "layer_norm_2",
                    "attn.q": "attention.self.query",
                    "attn.sr": "attention.self.sr",
                    "attn.norm": "attention.self.layer_norm",
                    "attn.proj": "attention.output.dense",
                    "mlp.fc1": "mlp.dense1",
                    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
                    "mlp.fc2": "mlp.dense2",
                }[layer]
                renamed[f"{block}.{theirs}.{end}"] = v
    assert len(renamed) == len(state) + 2 * 8  # eight blocks, each with a kv of two tensors, split in two
    return renamed


def as_openmmlab(state: State) -> State:
    """The same as OpenMMLab's converter writes them: an MLP of convolutions, one projection into q, k and v."""
    renamed = {}
    for kind, stage, part, end, v in _placed(state):
        if kind == "norm":
            renamed[f"layers.{stage}.2.{end}"] = v
        elif kind == "patch_embed":
            layer = {"proj": "projection", "norm": "norm"}[part]
            renamed[f"layers.{stage}.0.{layer}.{end}"] = v
        else:
            number, _, layer = part.partition(".")
            block = f"layers.{stage}.1.{number}"
            if layer == "attn.q":
                kv = state[f"block{stage + 1}.{number}.attn.kv.{end}"]
                renamed[f"{block}.attn.attn.in_proj_{end}"] = torch.cat([v, kv])
            elif layer in ("mlp.fc1", "mlp.fc2"):
                place = {"mlp.fc1": 0, "mlp.fc2": 4}[layer]
                renamed[f"{block}.ffn.layers.{place}.{end}"] = v[:, :, None, None] if end == "weight" else v
            elif layer != "attn.kv":
                theirs = {"attn.proj": "attn.attn.out_proj", "mlp.dwconv.dwconv": "ffn.layers.1"}.get(layer, layer)
                renamed[f"{block}.{theirs}.{end}"] = v
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
