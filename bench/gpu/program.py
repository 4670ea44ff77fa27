"""What the program of a stage is given: a device, a time, and a file that holds what it has found so far."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.arguments import seconds
from dida.machine.files import write_json


@dataclass
class Program:
    """A stage, as it sees itself."""

    device: str  # cuda; or cpu: everything is tiny, so that the command can be tried
    to: Path
    until: float  # on the clock of time.monotonic
    found: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def keep(self, **found: Any) -> None:
        """Add to what was found; on disk when it returns, whatever comes after it."""
        self.found |= found
        write_json(self.to, self.found)


def stage_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows what every stage is given; a stage adds what is its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=seconds, default=60.0, help="to be done in")
    parser.add_argument("--to", type=Path, required=True, help="JSON file of what is found, written as it goes")
    return parser


def begin(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> tuple[Program, argparse.Namespace]:
    """The program, its time running, and its own options."""
    options = parser.parse_args(arguments)
    return Program(options.device, options.to, time.monotonic() + options.seconds), options
