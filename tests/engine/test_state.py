"""Checkpoints: whole or not there, and refused where they are not ours."""

import errno
import io
import os
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.errors import NonFinite
from dida.state import FORMAT, PARTS, WHOLE, checkpoints, latest, leaves, load_checkpoint, load_weights
from tests.engine.scenes import build, small_state, tiny

CLASSES = CITYSCAPES_CLASSES.to_dict()


def test_a_crash_while_writing_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    state = small_state()
    state.step = 1
    state.save(tmp_path, {}, CLASSES)

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    state.step = 2
    with pytest.raises(OSError, match="no space"):
        state.save(tmp_path, {}, CLASSES)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000001.pt"]
    assert load_checkpoint(latest(tmp_path))["step"] == 1


def test_everything_that_changes_is_restored(tmp_path):
    state = small_state()
    state.step = 7
    state.bank.features.fill_(3.0)
    state.shares.share.copy_(torch.arange(19) / 171)
    path = state.save(tmp_path, {"method": "dida"}, CLASSES)
    other = small_state(seed=5)
    checkpoint = load_checkpoint(path)
    assert checkpoint["config"] == {"method": "dida"}
    assert ClassSet.from_dict(checkpoint["classes"]) == CITYSCAPES_CLASSES
    other.load(checkpoint)
    assert other.step == 7
    assert other.bank.features.eq(3.0).all()
    assert torch.equal(other.shares.share, state.shares.share)
    for part in (state.student, other.student), (state.teacher, other.teacher):
        for a, b in zip(*(module.state_dict().values() for module in part), strict=True):
            assert torch.equal(a, b)


def test_an_optimizer_runs_as_its_device_has_it_and_not_as_the_checkpoint_was_written():
    """A checkpoint of a GPU, whose AdamW is one kernel, goes on on a CPU."""
    saved, state = small_state(), small_state()
    content = {part: getattr(saved, part).state_dict() for part in PARTS} | {"step": 1}
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = True
    state.load(content)
    assert [group["fused"] for group in state.optimizer.param_groups] == [None] * 3


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    text = tmp_path / "notes.pt"
    text.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"notes.pt: no checkpoint"):
        load_checkpoint(text)
    tensors = tmp_path / "tensors.pt"
    torch.save({"weight": torch.ones(1)}, tensors)
    with pytest.raises(ValueError, match=f"expected a DIDA checkpoint of format {FORMAT}, found None"):
        load_checkpoint(tensors)
    code = tmp_path / "code.pt"
    torch.save({"format": FORMAT, "run": build}, code)
    with pytest.raises(ValueError, match="not one of plain tensors"):
        load_checkpoint(code)


@pytest.mark.parametrize("found", [1, FORMAT + 1, str(FORMAT)])
def test_checkpoints_of_another_format_are_refused(tmp_path, found):
    state = small_state()
    path = state.save(tmp_path, {}, CLASSES)
    torch.save(load_checkpoint(path) | {"format": found}, path)
    with pytest.raises(ValueError, match=f"expected a DIDA checkpoint of format {FORMAT}, found {found!r}"):
        load_checkpoint(path)


def test_weights_of_another_network_are_refused_in_few_lines():
    small, large = (build(tiny(embed_dim=dim))[0].student for dim in (16, 32))
    with pytest.raises(ValueError, match=r"^here: not the weights of a larger one, e\.g\.") as caught:
        load_weights(large, small.state_dict(), source="here", expected="a larger one")
    assert 1 < len(str(caught.value).splitlines()) < 5
    load_weights(small, small.state_dict(), source="here", expected="itself")


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        latest(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="stopped before its first one"):
        latest(tmp_path)


def test_the_step_number_orders_checkpoints_not_its_spelling(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step_999999.pt", "step_1000000.pt", "step_000010.pt"):
        (folder / name).touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000010.pt", "step_999999.pt", "step_1000000.pt"]


# ---- damaged, foreign, not finite ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run of two checkpoints."""
    run = tmp_path_factory.mktemp("run")
    state = small_state()
    for step in (100, 200):
        state.step = step
        state.save(run, {}, CLASSES)
    return run


@pytest.fixture
def run(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def middle_of(path: Path) -> int:
    return path.stat().st_size // 2


def flipped(path: Path, at: int, *, length: int = 1, value: int | None = None) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        content = bytes(b ^ 16 if value is None else value for b in file.read(length))
        file.seek(at)
        file.write(content)


def record(path: Path, name: str) -> int:
    """Where the content of a record of the archive begins, and a little further."""
    with zipfile.ZipFile(path) as archive:
        (info,) = (info for info in archive.infolist() if info.filename.endswith(name))
        with archive.open(info) as opened:
            return opened._orig_compress_start + 1


def directory(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return archive.start_dir


DAMAGES = {
    "a bit of a tensor": lambda path: flipped(path, middle_of(path)),
    "a bit of the names": lambda path: flipped(path, record(path, "data.pkl")),
    "4 kB of zeros": lambda path: flipped(path, middle_of(path), length=4096, value=0),
    "a bit of the directory": lambda path: flipped(path, directory(path) + 20),  # a checksum
    "cut off in the middle": lambda path: os.truncate(path, middle_of(path)),
    "cut off at the end": lambda path: os.truncate(path, path.stat().st_size - 10),
    "emptied": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("nothing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_older_whole_one_is_named(run, damage):
    old, new = checkpoints(run)
    DAMAGES[damage](new)
    with pytest.raises(ValueError, match=f"^{new}: (damaged|no checkpoint)") as caught:
        load_checkpoint(new)
    assert f"An older one is whole: go on from it with --resume {old}, or score it with eval.py {old}" in str(
        caught.value
    )
    DAMAGES[damage](old)
    with pytest.raises(ValueError, match=f"^{new}: (damaged|no checkpoint)") as caught:
        load_checkpoint(new)
    assert "An older one" not in str(caught.value)


def test_a_flipped_bit_is_found_or_changes_nothing(run):
    """At sixty places of one file; the archive has a few that hold nothing."""
    path = checkpoints(run)[-1]
    content = load_checkpoint(path)
    refused = 0
    for part in range(1, 61):
        at = path.stat().st_size * part // 61
        flipped(path, at)
        try:
            found = load_checkpoint(path)
        except ValueError:
            refused += 1
        else:
            assert first_difference(found, content) is None
        flipped(path, at)
    assert refused > 50


def first_difference(a: Any, b: Any) -> str | None:
    """What two checkpoints differ in."""
    found, expected = dict(leaves(a)), dict(leaves(b))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not (torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value):
            return name
    return None


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no student": (lambda c: c.pop("student"), "expected a dictionary as 'student', found nothing"),
    "no step": (lambda c: c.pop("step"), "expected a whole number as 'step', found nothing"),
    "step as text": (lambda c: c.update(step="5"), "expected a whole number as 'step', found '5'"),
    "step as truth": (lambda c: c.update(step=True), "expected a whole number as 'step', found True"),
    "config as a list": (lambda c: c.update(config=[]), "expected a dictionary as 'config'"),
    "bank of 41 slots": (lambda c: c["bank"].update(features=torch.zeros(41, 16)), "bank: not the weights of the bank"),
    "slots of no class": (
        lambda c: c["bank"]["labels"].fill_(99), "bank: labels: slots are of the classes 0 to 18, found others"
    ),
    "no bank features": (lambda c: c["bank"].pop("features"), "bank: not the weights of the bank"),
    "swapped": (
        lambda c: c.update(optimizer=c["schedule"], schedule=c["optimizer"]), 
        "optimizer: not the state of an optimizer",
    ),
    "optimizer with a group less": (lambda c: c["optimizer"]["param_groups"].pop(), "expected 3 groups of parameters"),
    "optimizer of other options": (
        lambda c: c["optimizer"]["param_groups"][0].pop("betas"), "not the state of AdamW for the network"
    ),
    "moments of another shape": (
        lambda c: c["optimizer"]["state"].update({3: {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}),
        "optimizer: exp_avg of parameter 3 is not of its shape",
    ),
    "sparse weights": (
        lambda c: c["student"].update({k: v.to_sparse() for k, v in c["student"].items() if v.dim()}),
        "is not a dense tensor of plain numbers .torch.sparse_coo",
    ),
    "numbers of no device": (
        lambda c: c["bank"].update({k: v.to("meta") for k, v in c["bank"].items()}),
        "bank.* is not a dense tensor of plain numbers .*meta",
    ),
    "sparse moments": (
        lambda c: c["optimizer"]["state"].update({3: {"exp_avg": torch.ones(2, 2).to_sparse()}}),
        "optimizer.state.3.exp_avg is not a dense tensor",
    ),
    "one number as a million million": (
        lambda c: c.update(files=torch.zeros(1).expand(10**12)), "files shows the same few numbers 1000000000000 times"
    ),
    "optimizer with another beta": (
        lambda c: c["optimizer"]["param_groups"][0].update(betas=5), "betas of its own config is .*, found 5"
    ),
    "moments of whole numbers": (
        lambda c: moments(c).update(exp_avg_sq=moments(c)["exp_avg_sq"].long()),
        "exp_avg_sq of parameter 0 is not of its type, torch.float32",
    ),
    "moments of a step before the first": (
        lambda c: moments(c).update(step=torch.tensor(-7.0)), "step of parameter 0 is not one of 1 to"
    ),
    "moments of a step as text": (lambda c: moments(c).update(step="x"), "step of parameter 0 is not one of 1 to"),
    "schedule before the first step": (
        lambda c: c["schedule"].update(last_epoch=-5), "schedule: is at step -5, the checkpoint at"
    ),
    "schedule of other functions": (
        lambda c: c["schedule"].update(lr_lambdas="x"), "schedule: not the state of a schedule"
    ),
    "schedule of other rates": (
        lambda c: c["schedule"].update(base_lrs=[1.0]), "schedule: not the state of a schedule"
    ),
    "integer weights": (
        lambda c: c["teacher"].update({k: v.int() for k, v in c["teacher"].items()}),
        "holds torch.int32, expected torch.float32",
    ),
    "complex weights": (
        lambda c: c["student"].update({k: v.cfloat() for k, v in c["student"].items()}), "holds torch.complex64"
    ),
    "weights that are no tensors": (lambda c: c["student"].update(dict.fromkeys(c["student"], 1)), "is no tensor"),
    "NaN in the student": (lambda c: spoil(c["student"]), "the student's weights are not finite, e.g. "),
    "NaN in the bank": (lambda c: spoil(c["bank"]), "the bank's numbers are not finite, e.g. features"),
    "infinite moments": (
        lambda c: c["optimizer"]["state"].update({0: {"exp_avg": torch.tensor(torch.inf)}}),
        "the optimizer's numbers are not finite, e.g. state.0.exp_avg",
    ),
}  # fmt: skip


def moments(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["optimizer"]["state"][0]


def spoil(weights: dict[str, Tensor]) -> None:
    weights[next(iter(weights))].view(-1)[0] = torch.nan


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_checkpoint_is_refused_with_what_is_wrong(run, what):
    path = checkpoints(run)[-1]
    change, message = FOREIGN[what]
    rewritten(path, change)
    state = small_state()
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        state.load(load_checkpoint(path, needs=WHOLE), source=str(path))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["student", "teacher", "bank"])
def test_what_is_not_finite_is_not_saved(tmp_path, part, value):
    state = small_state()
    state.step = 7
    next(v for v in getattr(state, part).state_dict().values() if v.is_floating_point()).view(-1)[0] = value
    with pytest.raises(NonFinite, match=rf"^{part}\..* is not finite after step 7"):
        state.save(tmp_path, {}, CLASSES)
    assert checkpoints(tmp_path) == []


def test_a_full_disk_says_how_much_a_checkpoint_needs(tmp_path):
    state = small_state()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"1\.\d MB are needed, .* are free.*step_000000.pt"):
            state.save(tmp_path, {}, CLASSES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_write_that_fails_after_all_is_an_error_of_the_file_system(tmp_path, monkeypatch):
    """PyTorch's own words for it would be `enforce fail at inline_container.cc`."""

    class Failing(io.BytesIO):
        def write(self, content) -> int:
            raise OSError(errno.EIO, "Input/output error")

    state = small_state()
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, Failing()))
    with pytest.raises(OSError, match=r"Input/output error.*step_000000.pt"):
        state.save(tmp_path, {}, CLASSES)
    assert list((tmp_path / "checkpoints").iterdir()) == []
