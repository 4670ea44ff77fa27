"""Scalars reach whatever was asked for, by calls that wandb and trackio share."""

import sys
from types import ModuleType

import pytest

from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.errors import UserError
from dida.run.folder import Run, require_place
from dida.run.trackers import Service, require_tracker


class FakeLibrary(ModuleType):
    """Writes down what it is called with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls = []

    def init(self, **options) -> None:
        self.calls.append(("init", options))

    def log(self, scalars, step) -> None:
        self.calls.append(("log", step, scalars))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_service_gets_the_options_every_line_and_the_end(tmp_path, monkeypatch, library):
    fake = FakeLibrary(library)
    monkeypatch.setitem(sys.modules, library, fake)
    config = changed(Config(), out=tmp_path / "mine", tracker=library)
    with Run.start(config, CITYSCAPES_CLASSES) as run:
        run.log(10, {"loss/source": 0.5})
    (_, options), *others = fake.calls
    assert others == [("log", 10, {"loss/source": 0.5}), ("finish",)]
    assert options["name"].startswith("mine")
    assert options["resume"] == "allow"
    assert options["config"] == run.config
    assert (tmp_path / "mine" / "metrics.jsonl").read_text() == '{"step": 10, "loss/source": 0.5}\n'
    assert list((tmp_path / "mine").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("library, names_it", [("wandb", "id"), ("trackio", "name")])
def test_runs_of_one_name_are_told_apart_and_a_resumed_one_is_itself(tmp_path, monkeypatch, library, names_it):
    fake = FakeLibrary(library)
    monkeypatch.setitem(sys.modules, library, fake)
    for folder in ("a/s0", "b/s0", "a/s0"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Service(library, tmp_path / folder, {})
    first, second, again = (options[names_it] for _, options in fake.calls)
    assert first == again
    assert first != second


def test_what_a_service_raises_is_one_message(tmp_path, monkeypatch):
    fake = FakeLibrary("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    service = Service("wandb", tmp_path, {})
    fake.log = lambda scalars, step: 1 / 0
    with pytest.raises(UserError, match=r"--tracker wandb: log failed, ZeroDivisionError.*--tracker none"):
        service.add(1, {})


def test_a_service_that_cannot_end_hides_nothing(tmp_path, monkeypatch, caplog):
    """Neither why the run ends, nor that others may write there now."""
    fake = FakeLibrary("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    fake.finish = lambda: 1 / 0
    config = changed(Config(), out=tmp_path / "mine", tracker="wandb")
    with pytest.raises(KeyError, match="why"), Run.start(config, CITYSCAPES_CLASSES):
        raise KeyError("why")
    assert "--tracker wandb: finish failed, ZeroDivisionError" in caplog.text
    assert not (tmp_path / "mine" / "lock").exists()


def test_a_library_that_is_not_there_is_said_before_the_work(tmp_path):
    require_tracker("none")
    with pytest.raises(UserError, match="pip install no_such_library"):
        require_tracker("no_such_library")
    for library in ("wandb", "trackio"):
        if library not in sys.modules and not _installed(library):
            with pytest.raises(UserError, match=f"--tracker {library}"):
                require_place(changed(Config(), out=tmp_path / "mine", tracker=library))


def _installed(library: str) -> bool:
    from importlib.util import find_spec

    return find_spec(library) is not None
