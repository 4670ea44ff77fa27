"""Start weights of an encoder: from the Hugging Face hub, from timm, or from a file.

Start weights are those of ImageNet: the feature distance holds the student to the same ones, so an encoder that was
trained to segment cannot stand in for them.

MiT weights exist in three layouts. SegFormer's own files and DAFormer's checkpoints use the keys of `mit.py`; the hub's
`nvidia/mit-b*` use those of the transformers library, and files converted for OpenMMLab's have theirs (mit_names.py).
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models._features import FeatureGetterNet
from torch import nn

from dida.models.mit import VARIANTS, MixVisionTransformer
from dida.models.mit_names import mit_layout
from dida.models.segmentor import stage_info
from dida.models.weight_file import State, read_weights

MIT_LICENCE = "NVIDIA Source Code License for SegFormer: research and evaluation only, no commercial use"


def encoder_licence(name: str, weights: str) -> str:
    """The terms of the start weights of an encoder, as far as they are known. Arguments as of `load_backbone`."""
    if weights == "none":
        return "none: the network started from random weights"
    if weights != "auto":
        return f"that of the file of start weights, {Path(weights).name}, whatever its publisher says"
    if name in VARIANTS:
        return MIT_LICENCE
    source = timm.get_pretrained_cfg(name)
    return f"{(source and source.license) or 'not stated'} (timm's weights)"


def load_backbone(backbone: nn.Module, name: str, weights: str) -> str:
    """Fill `backbone` with start weights and say in one line, for the log, what was loaded.

    Args:
        backbone: an encoder from `build_backbone(name, ...)`; its parameters are overwritten.
        name: its timm name, e.g. mit_b5.
        weights: "auto" is the published ImageNet weights (hub or timm), "none" keeps the random ones, anything else
            is the path of a .safetensors, .pth, .pt or .bin file. The file holds a flat state dict or one under
            `state_dict` or `model`. Of a DAFormer checkpoint the frozen ImageNet encoder is read, not the student's.
            Keys of a classifier are dropped; every other key must match.

    Raises:
        FileNotFoundError: no file at that path.
        ValueError: the file holds something else than weights of this backbone, such as a whole segmentation network,
            or the backbone has none to download.
        ConnectionError: the download failed.
    """
    if weights == "none":
        return f"{name}: random weights"
    is_mit = isinstance(backbone, MixVisionTransformer)
    if weights == "auto":
        return _load_from_nvidia(backbone, name) if is_mit else _load_from_timm(backbone, name)
    path = Path(weights)
    state, part = _imagenet_part(read_weights(path).state, path)
    state = mit_layout(state) if is_mit else _features_layout(state, backbone)
    _load_exactly(backbone, state, f"{path} does not hold the weights of {name}")
    return f"{name}: {len(state)} tensors from {path}{part}"


def _load_from_nvidia(backbone: nn.Module, name: str) -> str:
    repo = f"nvidia/{name.replace('_', '-')}"  # mit_b5 -> nvidia/mit-b5
    page = f"https://huggingface.co/{repo}"
    try:
        path = fetch_weights(repo)
    except OSError as error:
        raise _no_download(name, f"model.safetensors (or pytorch_model.bin) from {page}/tree/main", error) from error
    state = mit_layout(read_weights(path).state)
    _load_exactly(backbone, state, f"{path.name} of {page} does not hold the weights of {name}")
    return f"{name}: {len(state)} tensors from {page} ({MIT_LICENCE})"


def fetch_weights(repo: str, **at: Any) -> Path:
    """The weights of a repository of the hub, from the network or the cache; `at`: what `hf_hub_download` takes.

    Raises OSError or EntryNotFoundError.
    """
    try:
        return Path(hf_hub_download(repo, "model.safetensors", **at))
    except LocalEntryNotFoundError:
        # a machine without network may hold the other file from an earlier download
        place = {name: value for name, value in at.items() if name in ("revision", "cache_dir")}
        cached = try_to_load_from_cache(repo, "pytorch_model.bin", **place)
        if isinstance(cached, str):
            return Path(cached)
        raise
    except EntryNotFoundError:  # not every one of these repositories has safetensors
        return Path(hf_hub_download(repo, "pytorch_model.bin", **at))


def _load_from_timm(backbone: nn.Module, name: str) -> str:
    source = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if source is None:
        raise ValueError(f"timm has no weights for '{name}': pass --weights PATH, or --weights none for random ones")
    page = f"https://huggingface.co/{source.hf_hub_id}" if source.hf_hub_id else str(source.url)
    try:
        donor = timm.create_model(
            name, pretrained=True, features_only=True, out_indices=stage_info(backbone).out_indices
        )
    except OSError as error:
        file = f"model.safetensors from {page}/tree/main" if source.hf_hub_id else page
        raise _no_download(name, file, error) from error
    backbone.load_state_dict(donor.state_dict())
    return f"{name}: timm's weights from {page} (licence: {source.license or 'not stated'})"


def _no_download(name: str, file: str, reason: OSError) -> ConnectionError:
    first_line = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return ConnectionError(
        f"cannot download the weights of {name}: {first_line}\n"
        f"Fetch {file} on a machine with a connection, copy it anywhere here and pass --weights PATH; "
        f"--weights none starts from random weights, which want a higher rate: --lr 1e-3 --head-lr-factor 1."
    )


# Beside student and teacher, DAFormer keeps the encoder as it was before training, for its feature distance.
_IMAGENET_PREFIX = "imnet_model.backbone."


def _imagenet_part(state: State, path: Path) -> tuple[State, str]:
    """What of a file can be ImageNet weights, and a word for the log on which part that is."""
    imagenet = {n.removeprefix(_IMAGENET_PREFIX): v for n, v in state.items() if n.startswith(_IMAGENET_PREFIX)}
    if imagenet:
        return imagenet, ", its ImageNet part"
    if any("decode_head" in name.split(".") for name in state):
        raise ValueError(
            f"{path} holds a whole segmentation network, whose encoder no longer has ImageNet's weights: --weights "
            f"takes 'auto' or a file of the encoder alone; --init starts from a whole network"
        )
    return state, ""


def _features_layout(state: State, backbone: nn.Module) -> State:
    """timm's files name the modules of the whole classifier. Its features-only models have lost the last layers, and
    have either flattened the outer containers (stages.0 -> stages_0) or put all in `model`."""
    prefix = "model." if isinstance(backbone, FeatureGetterNet) else ""
    expected = backbone.state_dict().keys()
    modules = {name.removeprefix(prefix).split(".")[0] for name in expected}
    layout = {}
    for name, tensor in state.items():
        name = name.removeprefix(prefix)
        for candidate in (name.replace(".", "_", 1), name):
            if candidate.split(".")[0] in modules:
                layout[prefix + candidate] = tensor
                break
    return layout


def _load_exactly(backbone: nn.Module, state: State, complaint: str) -> None:
    expected = backbone.state_dict()
    misshaped = [
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    odd = [
        f"{name} {state[name].dtype}"
        for name in expected.keys() & state.keys()
        if state[name].is_floating_point() != expected[name].is_floating_point()
    ]
    problems = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": misshaped,
        "of another kind of numbers": odd,
    }
    if any(problems.values()):
        listed = "\n".join(f"  {len(names)} {what}: {_some(names)}" for what, names in problems.items() if names)
        raise ValueError(f"{complaint}; take the file of this very variant:\n{listed}")
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{complaint}: {_some(bad)} {'are' if len(bad) > 1 else 'is'} not finite")
    backbone.load_state_dict(state)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:10])
    return f"{shown}, ..." if len(names) > 10 else shown
