"""Blocks of pages that a harness writes: what was tried, with the machine and the source that it was tried on."""

from pathlib import Path

from bench.record import replaced
from dida.machine.files import write_text
from dida.machine.provenance import machine, source_digest

PAGES = Path(__file__).parents[1] / "docs"


def write_block(page: str, block: str, text: str) -> None:
    """Put `text` between the marks of `block` in docs/`page`. Raises ValueError where they are not there."""
    path = PAGES / page
    write_text(path, replaced(path.read_text(), block, text))


def tried_on() -> str:
    """The machine and the digest of the source, in words."""
    about = machine()
    return f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, source {source_digest()}"
