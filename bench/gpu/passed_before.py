"""A pytest plugin, and what it reads: tests that passed in an earlier command are not run once more.

Only of the same kernels on the same machine: where either is another, all tests run, and the log says why.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from bench import record
from bench.gpu.measurements import MACHINE, Measurements
from bench.gpu.runner import AGAIN, CHECKOUT
from dida.machine.provenance import source_digest

STAGE = "agreement"
KERNELS = ("dida_kernels", "csrc", "setup.py")  # what a test of the kernels depends on besides itself
OF_KERNELS = "tests/kernels/"  # the tests that depend on no more
NAMES = "DIDA_PASSED_BEFORE"  # variable that names a JSON file of tests


class Before(NamedTuple):
    """What an earlier command saw."""

    passed: list[str]  # they need not run again
    failed: dict[str, str]  # why, by test: they are red until they have run again
    commits: str  # of which that is
    note: str | None = None  # why nothing of it counts


NOTHING = Before([], {}, "")


def kernels_digest() -> str:
    """Changes with any byte of the kernels."""
    return source_digest(CHECKOUT, KERNELS)


def seen_before(device: str) -> Before:
    """What counts of the results that the command was given. Raises OSError, or ValueError where they are none."""
    results = os.environ.get(AGAIN)
    if not results:
        return NOTHING
    earlier, here = Measurements.read(Path(results)), record.header(device)
    found = earlier.found(STAGE)
    if found.get("kernels") != kernels_digest():
        return NOTHING._replace(note=f"{results} is of other kernels: all tests run")
    if other := [part for part in MACHINE if earlier.header.get(part) != here.get(part)]:
        return NOTHING._replace(note=f"{results} differs in {', '.join(other)}: all tests run")
    tests = found.get("tests", {})
    passed = [name for name, outcome in tests.items() if outcome == "passed" and name.startswith(OF_KERNELS)]
    failed = {name: found["why"].get(name, "") for name, outcome in tests.items() if outcome == "failed"}
    commits = [(found.get("before") or {}).get("commit"), earlier.source_of(STAGE)["commit"]]
    return Before(passed, failed, ", ".join(filter(None, commits)))


def leave_out(names: Iterable[str], path: Path) -> None:
    """Tell the test processes that are started from here."""
    path.write_text(json.dumps(list(names)))
    os.environ[NAMES] = str(path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if NAMES not in os.environ:
        return
    known = set(json.loads(Path(os.environ[NAMES]).read_text()))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]
