"""A pytest plugin: tests that passed in an earlier command are not run once more."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.gpu.measurements import SOURCE, Measurements
from bench.gpu.runner import AGAIN

STAGE = "agreement"


class Before(NamedTuple):
    """Tests that need not run again."""

    tests: dict[str, str]  # id -> passed or skipped
    why: dict[str, str]  # of those that were skipped
    source: dict[str, Any]  # of which commit that is


NOTHING = Before({}, {}, {})


def passed_before() -> Before:
    """What an earlier command saw. Raises OSError, or ValueError for a file that is none of its results."""
    results = os.environ.get(AGAIN)
    if not results:
        return NOTHING
    earlier = Measurements.read(Path(results))
    found = earlier.found(STAGE)
    tests = {name: outcome for name, outcome in found.get("tests", {}).items() if outcome != "failed"}
    why = {name: reason for name, reason in found.get("why", {}).items() if name in tests}
    return Before(tests, why, {part: earlier.source_of(STAGE)[part] for part in SOURCE})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known = passed_before().tests
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]
