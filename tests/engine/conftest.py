import signal
from collections.abc import Iterator

import pytest

from dida.signals import STOPPING


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A training loop listens until its program ends; here other tests come after it."""
    before = {kind: signal.getsignal(kind) for kind in STOPPING}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)
