"""What must be set before triton or one of our modules is imported, and what a machine without a GPU skips."""

import logging
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from tests.interpreter import quicken

if not torch.cuda.is_available():
    # Triton binds a kernel to its interpreter at import; without a GPU that is the only way to run one.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton"):
        quicken()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic algorithms on CUDA


def pytest_report_header() -> str | None:
    """What it takes to see a failure again."""
    return f"DIDA_SEED={os.environ['DIDA_SEED']}" if "DIDA_SEED" in os.environ else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """As a shell starts a program, under nohup too; and as it was for the tests to come: a loop listens to its end."""
    from dida.machine.signals import STOPPING

    before = {kind: signal.signal(kind, signal.SIG_DFL) for kind in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """A command sets up the log of its process; the next test in it sees warnings alone, as if it were the first."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
