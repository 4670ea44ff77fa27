"""A pytest plugin: a test process whose CUDA context is lost ends with the test that lost it.

After an illegal access every call into that context fails, so all later tests of the process would be red. xdist counts
the test as failed and goes on with the others in a new process.
"""

import os
import sys
from collections.abc import Generator
from typing import Any

import pytest


def context_is_lost() -> bool:
    """Whether CUDA can no longer be used by this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, pytest.TestReport]:
    report = yield
    if report.failed and hasattr(item.config, "workerinput") and context_is_lost():
        print(f"{item.nodeid}: the context is lost\n{report.longreprtext}", file=sys.stderr, flush=True)
        os._exit(1)
    return report
