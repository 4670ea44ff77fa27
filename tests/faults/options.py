"""Options that nobody could mean, on command lines and in saved configs."""

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dida.config import Config, changed, from_dict, to_dict
from dida.options import Range, flag
from dida.options.evaluation import EvalConfig
from tests.faults.places import Places
from tests.faults.programs import evaluation, training
from tests.faults.trial import Case, told
from tests.option_types import option_types

NO_NUMBERS = ("nan", "inf", "-inf", "", "text", "1e400")
NO_WHOLE_NUMBERS = ("nan", "inf", "", "²", "0x10", "1.5", str(10**30))
NO_SIZES = ("²x²", "0x0", "x", "1280", "-1x-1", "99999999x1", "1280x", "nanxnan", "1e3x1e3", "10x10x10", "", " 64x32")
NO_DEVICES = ("meta", "cuda:99", "nope", "", "cuda:x", "cpu:x", "mkldnn", "cuda:-1")
NO_DOMAINS = (
    "",
    "nope",
    "folder:",
    "folder:/nope",
    "folder:/dev/null",
    "folder:/proc/nope",
    "+",
    "toy-gta5+",
    "TOY-GTA5",
    "toy-gta5 ",
    "../toy-gta5",
)
NO_BACKBONES = ("nope", "", "mit_b9", "../mit_b0", "MIT_B0", "mit_b0 ", "vit_tiny_patch16_224")
NO_VALUES: tuple[Any, ...] = (None, [], "text", float("nan"), 10**30, -5)


def option_cases(places: Places) -> Iterator[Case]:
    """Every option of train.py and eval.py, with values out of its type, its choices and its range."""
    for name, kind in option_types(Config):
        for value in _wrong(kind):
            yield _refused("train.py", training(places.toy, **{name: value}), name, value)
    for name, kind in option_types(EvalConfig):
        for value in () if name == "run" else _wrong(kind):
            yield _refused("eval.py", evaluation(places.checkpoint, **{name: value}), name, value)
    for name, values in {
        "src_size": NO_SIZES,
        "tgt_size": NO_SIZES,
        "device": NO_DEVICES,
        "src": NO_DOMAINS,
        "tgt": NO_DOMAINS,
        "backbone": NO_BACKBONES,
        "weights": ("", "nope", "/dev/null", "/proc/nope", ".", "AUTO"),
        "init": ("", "nope", "/dev/null", ".", "/proc/nope/x"),
    }.items():
        for value in values:
            yield _refused("train.py", training(places.toy, **{name: value}), name, value, words=())
    for name, values in {
        "size": NO_SIZES,
        "device": NO_DEVICES,
        "tgt": NO_DOMAINS,
        "run": ("", "nope", "/dev/null", ".", "/proc"),
        "images": ("nope", "/dev/null", "/proc/nope", "."),
        "data_root": ("nope", "/dev/null", "/proc/nope"),
    }.items():
        for value in values:
            yield _refused("eval.py", evaluation(places.checkpoint, **{name: value}), name, value, words=())


def _refused(program: str, does: Any, name: str, value: str, *, words: tuple[str, ...] | None = None) -> Case:
    return Case("options", f"{program} {flag(name)} {value!r}", does, words=(flag(name),) if words is None else words)


def _wrong(kind: Any) -> Iterator[str]:
    """Values on a command line that no field of this type may have."""
    if typing.get_origin(kind) is Literal:
        yield from ("", "nope", str(typing.get_args(kind)[0]).upper(), "0")
    if typing.get_origin(kind) is not typing.Annotated:
        return
    base, *notes = typing.get_args(kind)
    whole = base is int or int in typing.get_args(base)
    none_is_a_value = type(None) in typing.get_args(base)
    yield from (v for v in (NO_WHOLE_NUMBERS if whole else NO_NUMBERS) if not (v == "None" and none_is_a_value))
    for allowed in notes:
        if isinstance(allowed, Range):
            step = 1 if whole else 1e-3
            yield str(allowed.low if allowed.low_open else allowed.low - step)
            high = allowed.high if allowed.high_open else allowed.high + max(step, 1e-3 * allowed.high)
            yield str(int(high) if whole else high)


def config_cases(places: Places) -> Iterator[Case]:
    """Saved options: every one with a value of another kind, and files that hold no options."""
    good = to_dict(Config())
    for group, values in good.items():
        for name in values if isinstance(values, dict) else [None]:
            for value in NO_VALUES:
                broken = json.loads(json.dumps(good))
                if name is None:
                    broken[group] = value
                else:
                    broken[group][name] = value
                if _may_be(broken, name or group, value):
                    continue
                yield Case(
                    "config",
                    f"{name or group}: {value!r}",
                    told(lambda b=broken: from_dict(b), ValueError),
                    words=(flag(name or group) if name or not isinstance(values, dict) else "options of",),
                )
    for name, text in {
        "empty": "",
        "cut": json.dumps(good)[:200],
        "null": "null",
        "list": "[]",
        "number": "7",
        "text": '"x"',
        "deep": "[" * 100_000,
        "not UTF-8": None,
        "unknown": json.dumps(good | {"nope": 1}),
        "NaN": "NaN",
        "unknown in a group": json.dumps(good | {"data": good["data"] | {"nope": 1}}),
        "group a list": '{"data": []}',
    }.items():
        yield Case("config", f"config.json: {name}", _resumed_with(places, text), words=("config.json", "train.py: "))
    for name, value in {
        "seed": 7,
        "method": "daformer",
        "crop": 32,
        "lr": 1e-3,
        "embed_dim": 32,
        "bank_size": 60,
        "phi": 0.5,
        "backbone": "mit_b1",
        "batch_size": 2,
        "selecting": "avg",
        "tgt_size": "64x64",
    }.items():
        other = json.dumps(to_dict(changed(places.config, **{name: value})))
        yield Case("config", f"--resume, {name} edited", _resumed_with(places, other), words=(name, "config.json"))


def _may_be(values: dict[str, Any], name: str, value: Any) -> bool:
    """Whether a value that is meant to be wrong happens to be one that the option may have."""
    kinds = dict(option_types(Config))
    kind = kinds.get(name)
    base = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    if base is bool:
        return value is True
    if base is str or Path in (base, *typing.get_args(base)):
        return isinstance(value, str) or (value is None and base is not str and base is not Path)
    return base is float and value == 10**30


def _resumed_with(places: Places, config: str | None) -> Any:
    def does() -> None:
        run = places.copy_of_run(Path("run"))
        (run / "config.json").write_bytes(b"\xff\xfe{}" if config is None else config.encode())
        training(None, resume=run)()

    return does
