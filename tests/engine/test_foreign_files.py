"""K17, K20, K22: whatever lies where a file of ours is read, one message names it, and nobody waits."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dida.config import Config, changed, to_dict
from dida.data.class_file import read_class_file
from dida.machine.files import read_metrics, write_json
from dida.models.weight_file import read_weights
from dida.recipes import from_command_line
from dida.report.gather import read_environment
from dida.run.folder import Run
from dida.run.transfer import start_from_init
from dida.state import latest, load_checkpoint
from dida.use.stored import read_stored

REFUSALS = (ValueError, OSError, SystemExit)  # the last is what the options end with


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A pipe would be waited for, and a device read, until the machine is given up."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still reading"))
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def start_from(path: Path) -> None:
    model = changed(Config(), init=path).model
    start_from_init(None, model, None)  # type: ignore[arg-type]  # it is read first


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "--resume RUN": ("config.json", lambda path: from_command_line(["--resume", str(path.parent)])),
    "--config FILE": ("options.json", lambda path: from_command_line(["--config", str(path)])),
    "--config RUN": ("config.json", lambda path: from_command_line(["--config", str(path.parent)])),
    "--init FILE": ("step_000002.pt", start_from),
    "eval.py RUN": ("checkpoints/step_000002.pt", lambda path: read_stored(path.parents[1])),
    "a checkpoint": ("checkpoints/step_000002.pt", lambda path: load_checkpoint(latest(path.parents[1]))),
    "--weights": ("w.pth", read_weights),
    "--weights, safe": ("w.safetensors", read_weights),
    "classes.json": ("classes.json", read_class_file),
    "a run's machine": ("environment.json", read_environment),
}
LEFT: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": Path.mkdir,
    "nothing": Path.touch,
    "text": lambda path: path.write_text("{'a': 1}"),
    "no text": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}'),
    "a list": lambda path: path.write_text("[1]"),
    "null": lambda path: path.write_text("null"),
    "nested too deeply": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_of_ours_is_named(tmp_path, reader, what):
    name, read = READERS[reader]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    LEFT[what](path)
    with pytest.raises(REFUSALS, match=re.escape(path.name)):
        read(path)


@pytest.mark.parametrize("what", ["a pipe", "a device", "a folder", "a link to itself"])
def test_a_log_that_is_no_file_is_named_before_the_run_goes_on(tmp_path, what):
    LEFT[what](tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        Run.resume(changed(Config(), resume=tmp_path), 0)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("line", ['{"step": ', "[1]", "null", '{"step": []}', "[" * 100_000, b'{"step": "\xff"}'])
def test_a_line_of_a_log_that_is_none_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 10}).encode()
    path.write_bytes(b"\n".join([whole, line if isinstance(line, bytes) else line.encode(), whole, b""]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
        list(read_metrics(path))


@pytest.mark.parametrize("option", ["--resume", "--config"])
@pytest.mark.parametrize(
    "values, word",
    [
        ({"steps": 4}, "--steps 4"),
        ({"bank_fill": 2000}, "--bank-fill 2000"),
        ({"ignore_top": 300, "ignore_bottom": 300}, "--ignore-top 300"),
        ({"method": "oracle"}, "--method oracle"),
        ({"src_size": "1280"}, "--src-size"),
        ({"lr": 1e300}, "--lr"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_those_of_the_file(tmp_path, option, values, word):
    """K16: not of the command line, which says none of them."""
    path = tmp_path / "config.json"
    write_json(path, to_dict(changed(Config(), **values)))
    with pytest.raises(SystemExit, match=f"train.py: {re.escape(str(path))}: {word}"):
        from_command_line([option, str(tmp_path)])
