import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dida.signals import STOPPING
from tests.data.factories import make_cityscapes


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """As a shell starts a program, under nohup too; and as it was for the tests to come: a loop listens to its end."""
    before = {kind: signal.signal(kind, signal.SIG_DFL) for kind in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with labels for val alone, and a picture of the toy."""
    root = tmp_path_factory.mktemp("data")
    make_cityscapes(root, (128, 64), val=3, train=2, labelled=("val",))
    make_cityscapes(root, (128, 64), folder="toy/cityscapes", val=1)
    return root
