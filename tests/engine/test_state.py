"""Checkpoints: whole or not there, and refused where they are not ours."""

import pytest
import torch

from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.state import FORMAT, checkpoints, latest, load_checkpoint, load_weights
from tests.engine.scenes import build, tiny

CLASSES = CITYSCAPES_CLASSES.to_dict()


def test_a_crash_while_writing_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    state, _ = build(tiny())
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
    state, _ = build(tiny())
    state.step = 7
    state.bank.features.fill_(3.0)
    path = state.save(tmp_path, {"method": "dida"}, CLASSES)
    other, _ = build(tiny(seed=5))
    checkpoint = load_checkpoint(path)
    assert checkpoint["config"] == {"method": "dida"}
    assert ClassSet.from_dict(checkpoint["classes"]) == CITYSCAPES_CLASSES
    other.load(checkpoint)
    assert other.step == 7
    assert other.bank.features.eq(3.0).all()
    for part in (state.student, other.student), (state.teacher, other.teacher):
        for a, b in zip(*(module.state_dict().values() for module in part), strict=True):
            assert torch.equal(a, b)


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
    state, _ = build(tiny())
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
