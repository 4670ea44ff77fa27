"""Checkpoints and start weights: damaged, cut, of something else, or not finite."""

import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dida.models.pretrained import load_backbone
from dida.models.segmentor import build_backbone
from dida.state import ENTRIES, PARTS, WHOLE, leaves, load_checkpoint
from tests.faults.places import Places
from tests.faults.programs import evaluation, training
from tests.faults.trial import Case, told

FLIPS, HOLES, CUTS = 120, 40, 40
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def checkpoint_cases(places: Places) -> Iterator[Case]:
    """The newest checkpoint of a run is damaged, cut, another's, or not finite."""
    drawn = random.Random(0)
    whole = places.checkpoint.read_bytes()
    expected = dict(leaves(load_checkpoint(places.checkpoint)))
    for _ in range(FLIPS):
        at, bit = drawn.randrange(len(whole)), drawn.randrange(8)
        yield Case(
            "checkpoints",
            f"bit {bit} of byte {at} flipped",
            _read_as(places, lambda w, a=at, b=bit: _flipped(w, a, b), expected),
            None,
            ("older one",),
        )
    for _ in range(HOLES):
        at = drawn.randrange(len(whole) - 4096)
        yield Case(
            "checkpoints",
            f"4096 bytes zero at {at}",
            _read_as(places, lambda w, a=at: w[:a] + bytes(4096) + w[a + 4096 :], expected),
            None,
            ("older one",),
        )
    for number in range(CUTS):
        size = drawn.choice([number, drawn.randrange(len(whole)), len(whole) - 1 - number])
        yield Case(
            "checkpoints",
            f"cut to {size} bytes",
            _read_as(places, lambda w, s=size: w[:s], expected),
            True,
            ("older one",),
        )
    for name, kind in ENTRIES.items():
        for value in (_GONE, None, "text", [], 7.5, float("nan"), True, {} if kind is int else 5):
            yield _changed(places, f"{name} = {value!r}", lambda c, n=name, v=value: _set(c, n, v))
    for part in PARTS:
        for value in NOT_FINITE:
            yield _changed(places, f"a number of {part} = {value}", lambda c, p=part, v=value: _spoil(c[p], v))
        yield _changed(places, f"{part} of something else", lambda c, p=part: _set(c, p, {"weight": torch.zeros(3)}))
        yield _changed(places, f"{part} less a tensor", lambda c, p=part: c[p].pop(next(iter(c[p]))))
    for name, change in {
        "optimizer and schedule swapped": lambda c: c.update(optimizer=c["schedule"], schedule=c["optimizer"]),
        "student and bank swapped": lambda c: c.update(student=c["bank"], bank=c["student"]),
        "a bank of other size": lambda c: c["bank"].update({n: v[:-1] for n, v in c["bank"].items() if v.dim()}),
        "step negative": lambda c: c.update(step=-1),
        "step beyond the run": lambda c: c.update(step=10**9),
        "step absurd": lambda c: c.update(step=10**30),
        "format 1": lambda c: c.update(format=1),
        "format a text": lambda c: c.update(format="2"),
        "no format": lambda c: c.pop("format"),
        "classes of fewer": lambda c: c["classes"].update(names=c["classes"]["names"][:3]),
        "classes not text": lambda c: c["classes"].update(names=[1] * 19),
        "classes a list": lambda c: c.update(classes=[]),
        "config empty": lambda c: c.update(config={}),
        "config of another version": lambda c: c["config"].update(nope=1),
        "weights int8": lambda c: _cast(c["student"], torch.int8),
        "weights int64": lambda c: _cast(c["student"], torch.int64),
        "weights complex": lambda c: _cast(c["student"], torch.complex64),
        "weights bool": lambda c: _cast(c["student"], torch.bool),
        "weights of text": lambda c: c["student"].update({next(iter(c["student"])): "x"}),
        "teacher not finite": lambda c: _spoil(c["teacher"], float("nan")),
    }.items():
        yield _changed(places, name, change)
    for name, content in {
        "a list": [],
        "a tensor": torch.zeros(3),
        "a number": 5,
        "text": "x",
        "None": None,
        "nested": [{"step": 1}],
        "a state dict": {"weight": torch.zeros(3)},
    }.items():
        yield Case("checkpoints", f"holds {name}", _opened(lambda to, c=content: torch.save(c, to)), words=("it.pt",))
    for name, write in _FILES.items():
        yield Case("checkpoints", f"is {name}", _opened(write), words=("it.pt",))


def weight_cases(places: Places) -> Iterator[Case]:
    """--weights: files of every kind that holds weights, and of none."""
    own = build_backbone("mit_b0", 0.0).state_dict()

    def filled(content: Any, name: str = "w.pth", write: Callable[[Any, Path], object] = torch.save) -> Any:
        def does() -> None:
            write(content, Path(name))
            load_backbone(build_backbone("mit_b0", 0.0), "mit_b0", name)

        return told(does, ValueError, OSError)

    for name, content in {
        "flat": own,
        "under state_dict": {"state_dict": own},
        "under model": {"model": own},
        "under state_dict of model": {"model": {"state_dict": own}},
        "module.": _named("module.", own),
        "backbone.": _named("backbone.", own),
        "module.backbone.": _named("module.backbone.", own),
        "with a classifier": own | {"head.weight": torch.zeros(3, 256)},
        "with a numpy number": {"state_dict": own, "meta": {"epoch": np.float64(3)}},
        "with a numpy array": {"state_dict": own, "meta": np.zeros(3)},
        "float16": _as(own, torch.float16),
        "float64": _as(own, torch.float64),
        "bfloat16": _as(own, torch.bfloat16),
        "with meta data": {"state_dict": own, "epoch": 3},
    }.items():
        yield Case("weights", name, filled(content), False)
    for name, content in {
        "empty": {},
        "a list": [],
        "a tensor": torch.zeros(3),
        "None": None,
        "text values": {"a": "b"},
        "one tensor": {"weight": torch.zeros(3)},
        "less one": dict(list(own.items())[1:]),
        "one more": own | {"extra.weight": torch.zeros(2)},
        "another variant": build_backbone("mit_b1", 0.0).state_dict(),
        "int8": _as(own, torch.int8),
        "int64": _as(own, torch.int64),
        "bool": _as(own, torch.bool),
        "complex": _as(own, torch.complex64),
        "NaN": own | {next(iter(own)): next(iter(own.values())) * float("nan")},
        "infinite": own | {next(iter(own)): next(iter(own.values())) / 0},
        "scalars": {n: torch.zeros(()) for n in own},
        "numbers": {n: 1.0 for n in own},
        "a key a number": {1: torch.zeros(3)},
        "sparse": own | {next(iter(own)): torch.zeros(32, 3, 7, 7).to_sparse()},
    }.items():
        yield Case("weights", name, filled(content), words=("w.pth",))
    for ending in (".pth", ".safetensors", ".pt", ".bin", ".ckpt", ""):
        for name, write in _FILES.items():
            yield Case(
                "weights",
                f"{name} as {ending}",
                filled(None, f"w{ending}", lambda _, to, w=write: w(to)),
                words=(f"w{ending}",),
            )
    drawn = random.Random(1)
    file = io.BytesIO()
    torch.save(own, file)
    whole = file.getvalue()
    for _ in range(40):
        at, bit = drawn.randrange(len(whole)), drawn.randrange(8)

        def does(at: int = at, bit: int = bit) -> None:
            Path("w.pth").write_bytes(_flipped(whole, at, bit))
            backbone = build_backbone("mit_b0", 0.0)
            load_backbone(backbone, "mit_b0", "w.pth")
            same = all(torch.equal(value, own[name]) for name, value in backbone.state_dict().items())
            assert same, "other weights than were saved"

        yield Case("weights", f"bit {bit} of byte {at} flipped", told(does, ValueError, OSError), None, ("w.pth",))
    for size in (0, 1, 100, 4096, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        yield Case(
            "weights", f"cut to {size}", filled(whole[:size], write=lambda c, to: to.write_bytes(c)), words=("w.pth",)
        )


def _named(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _as(state: dict[str, Tensor], kind: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}


class _Code:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


def _zip(to: Path) -> None:
    with zipfile.ZipFile(to, "w") as archive:
        archive.writestr("note.txt", "no tensors")


_FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda to: to.write_bytes(b""),
    "text": lambda to: to.write_text("weights"),
    "a zip of text": _zip,
    "a pickle with code": lambda to: torch.save({"a": _Code()}, to),
    "an old pickle": lambda to: to.write_bytes(pickle.dumps({"a": 1})),
    "a page": lambda to: to.write_text("<!doctype html><title>404</title>"),
    "a folder": lambda to: to.mkdir(),
    "numpy": lambda to: to.write_bytes(b"\x93NUMPY" + bytes(100)),
    "zeros": lambda to: to.write_bytes(bytes(5000)),
    "noise": lambda to: to.write_bytes(random.Random(2).randbytes(5000)),
    "a pointer of git-lfs": lambda to: to.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "a pipe": os.mkfifo,
}
_GONE = "nothing"


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    content[name] = value
    if value is _GONE:
        del content[name]


def _spoil(part: dict[str, Any], value: float) -> None:
    for _, found in leaves(part):
        if isinstance(found, Tensor) and found.is_floating_point() and found.numel():
            found.view(-1)[found.numel() // 2] = value
            return
    part["base_lrs"][0] = value


def _cast(part: dict[str, Tensor], kind: torch.dtype) -> None:
    part.update({name: value.to(kind) for name, value in part.items()})


def _flipped(whole: bytes, at: int, bit: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]


def _read_as(places: Places, damage: Callable[[bytes], bytes], expected: dict[str, Any]) -> Callable[[], object]:
    """Reads the newest checkpoint after `damage`; what is taken must be what was saved."""

    def does() -> None:
        run = places.copy_of_run(Path("run"))
        newest = run / "checkpoints" / places.checkpoint.name
        newest.unlink()
        newest.write_bytes(damage(places.checkpoint.read_bytes()))
        found = dict(leaves(load_checkpoint(newest, needs=WHOLE)))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]) if isinstance(value, Tensor) else value == found[name], name

    return told(does, ValueError, OSError)


def _changed(places: Places, name: str, change: Callable[[dict[str, Any]], object]) -> Case:
    def does() -> None:
        run = places.copy_of_run(Path("run"))
        newest = run / "checkpoints" / places.checkpoint.name
        content = load_checkpoint(newest)
        content["student"] = {n: v.clone() for n, v in content["student"].items()}
        change(content)
        newest.unlink()
        torch.save(content, newest)
        training(None, resume=run)()

    return Case("checkpoints", name, does, words=("train.py: ", places.checkpoint.name))


def _opened(write: Callable[[Path], object]) -> Callable[[], object]:
    def does() -> None:
        write(Path("it.pt"))
        evaluation(Path("it.pt"))()

    return does
