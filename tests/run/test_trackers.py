"""Scalars reach whatever was asked for, by calls that wandb and trackio share."""

import sys
from types import ModuleType

import pytest

from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.errors import UserError
from dida.run.folder import Run, require_place
from dida.run.trackers import require_tracker


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
    assert options["name"] == "mine"
    assert options["resume"] == "allow"
    assert options["config"] == run.config
    assert (tmp_path / "mine" / "metrics.jsonl").read_text() == '{"step": 10, "loss/source": 0.5}\n'
    assert list((tmp_path / "mine").glob("events.out.tfevents.*"))


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
