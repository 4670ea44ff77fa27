"""What train.py and eval.py do with a command line, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dida import command
from dida.options import flag, read_command_line
from dida.options.evaluation import EvalConfig
from dida.recipes import from_command_line
from tests.faults.scripts import arguments

__all__ = ["evaluation", "training"]


def training(data: Path | None, **options: Any) -> Callable[[], None]:
    """A tiny run of train.py; without `data` the options alone."""

    def does() -> None:
        given = _line(options) if data is None else arguments(data, **({"out": "run", "steps": 2} | options))
        config = from_command_line(given, "train.py")
        command.run_check(config, "train.py") if config.check_data else command.run_training(config)

    return does


def evaluation(checkpoint: Path, **options: Any) -> Callable[[], None]:
    """eval.py."""

    def does() -> None:
        which = options.pop("run", checkpoint)
        given = [str(which), *_line({"workers": 0} | options)]
        command.run_evaluation(read_command_line(EvalConfig, given, "eval.py"))

    return does


def _line(options: dict[str, Any]) -> list[str]:
    return [part for name, value in options.items() for part in (flag(name), str(value))]
