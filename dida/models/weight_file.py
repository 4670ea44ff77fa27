"""Files of weights that others wrote, read without running anything that is in them.

A .pth is a pickle, and a pickle may name any function of any library to be called while it is read. Here only what
tensors are made of is called; wherever a file names anything else (mmcv keeps its config and numpy numbers beside the
weights), something inert stands.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dida.machine.checksums import require_whole
from dida.machine.files import read_json

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
CONFIG = "config.json"  # beside weights, as the hub has it
_UNDER = ("state_dict", "model", "student")  # where a state dict is in a file; the last one is of checkpoints of ours
# What programs that save a network put before every name: for several GPUs, for a compiler, for a class of their own.
_BEFORE_EVERY_NAME = ("module.", "_orig_mod.")


class WeightFile(NamedTuple):
    """What a file holds."""

    state: State
    about: dict[str, Any]  # what stands beside the weights: of mmcv `meta`, of the hub `config.json`


class _Inert(dict):
    """Stands where a file names a class or a function. It can be called, filled and given a state; nothing happens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()

    def __call__(self, *arguments: Any, **options: Any) -> "_Inert":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """As a list is filled."""

    def extend(self, items: Any) -> None:
        """As a list is filled."""

    def add(self, item: Any) -> None:
        """As a set is filled."""


_PARTS_OF_TENSORS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _Tensors(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _PARTS_OF_TENSORS.get((module, name), _Inert)


def _load(file: Any, **options: Any) -> Any:
    return _Tensors(file, **options).load()


# What torch.load asks of the module that it unpickles with. Storages are found by torch itself, by name.
_INERT_PICKLE = SimpleNamespace(__name__="inert", Unpickler=_Tensors, load=_load)


def read_weights(path: Path) -> WeightFile:
    """The tensors of a .safetensors, .pth, .pt or .bin file, flat or under `state_dict` or `model`.

    Raises FileNotFoundError, or ValueError that names the file where it is damaged or holds no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}: pass the path of a file, 'auto' or 'none'")
    beside = _config_beside(path)
    if path.suffix == ".safetensors":
        try:
            return WeightFile(safetensors.torch.load_file(path), beside)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error}): download it again") from error
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a kind of weights file: it must end in .safetensors, .pth, .pt or .bin")
    saved = _read_pickle(path)
    meta = saved.get("meta") if isinstance(saved, dict) else None
    return WeightFile(_state_dict(saved, path), beside | (meta if isinstance(meta, dict) else {}))


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        is_pickle = file.read(1) == b"\x80"  # as torch wrote files until 1.6; torch.load would unpack an archive, too
    program = False
    try:
        if not is_pickle:
            require_whole(path)
            with zipfile.ZipFile(path) as archive:
                program = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if not program:
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT_PICKLE)
    # A damaged pickle can end in anything that the few functions above raise for arguments that are none of theirs.
    except Exception as error:
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged, or no file of torch ({why}): download it again") from error
    raise ValueError(f"{path} is a TorchScript program, which would be run: save its state dict alone")


def _state_dict(saved: Any, path: Path) -> State:
    saved = _innermost(saved)
    if (
        not isinstance(saved, dict)
        or not saved
        or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in saved.items())
    ):
        raise ValueError(f"{path} holds no state dict: expected names with tensors, flat or under state_dict or model")
    while before := next((b for b in _BEFORE_EVERY_NAME if all(name.startswith(b) for name in saved)), None):
        saved = {name.removeprefix(before): value for name, value in saved.items()}
    return saved


def _innermost(saved: Any) -> Any:
    for key in _UNDER:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            return _innermost(saved[key])
    return saved


def _config_beside(path: Path) -> dict[str, Any]:
    file = path.with_name(CONFIG)
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}
